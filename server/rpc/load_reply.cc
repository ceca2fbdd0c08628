#include "server/rpc/load_reply.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fq {
namespace {

using google::protobuf::internal::WireFormatLite;

// Takes the string along; gRPC frees it when the bytes have gone out.
grpc::Slice SliceOf(std::string bytes) {
  auto* owned = new std::string(std::move(bytes));
  return grpc::Slice(
      owned->data(), owned->size(), [](void* text) { delete static_cast<std::string*>(text); },
      owned);
}

}  // namespace

absl::StatusOr<wire::LoadRequest> ParseLoadRequest(const grpc::ByteBuffer& message) {
  grpc::ByteBuffer bytes(message);  // shares the slices
  wire::LoadRequest request;
  if (grpc::SerializationTraits<wire::LoadRequest>::Deserialize(&bytes, &request).ok()) {
    return request;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("message of ", message.Length(), " bytes: is no LoadRequest"));
}

grpc::ByteBuffer JoinLoadReply(const wire::LoadResponse& head, std::string payload) {
  std::string front = head.SerializeAsString();
  if (!payload.empty()) {
    google::protobuf::io::StringOutputStream stream(&front);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.WriteTag(WireFormatLite::MakeTag(wire::LoadResponse::kPayloadFieldNumber,
                                           WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
    coded.WriteVarint64(payload.size());
  }
  std::vector<grpc::Slice> slices;
  slices.push_back(SliceOf(std::move(front)));
  if (!payload.empty()) slices.push_back(SliceOf(std::move(payload)));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace fq
