#include "server/rpc/validate_session.h"

#include <gtest/gtest.h>

#include <functional>

namespace fq {
namespace {

wire::SessionRequest Good() {
  wire::SessionRequest request;
  request.set_namespace_name("a/b-c_d.9");
  wire::NamespaceDescriptor& d = *request.mutable_namespace_descriptor();
  d.set_model("m");
  d.set_layers(4);
  d.set_kv_heads(2);
  d.set_head_size(96);
  d.set_dtype(wire::DTYPE_F32);
  request.mutable_range()->set_layer_begin(1);
  request.mutable_range()->set_layer_end(4);
  request.mutable_range()->set_head_end(2);
  return request;
}

struct BadField {
  std::string field, value;
  std::function<void(wire::SessionRequest&, wire::NamespaceDescriptor&)> apply;
};
using Request = wire::SessionRequest;
using Descriptor = wire::NamespaceDescriptor;

const BadField kBadFields[] = {
    {"namespace_name", "0", [](Request& r, Descriptor&) { r.clear_namespace_name(); }},
    {"namespace_name", "129",
     [](Request& r, Descriptor&) { r.set_namespace_name(std::string(129, 'n')); }},
    {"namespace_name", "a b", [](Request& r, Descriptor&) { r.set_namespace_name("a b"); }},
    {"namespace_name", "\\x00",
     [](Request& r, Descriptor&) { r.set_namespace_name(std::string("a\0b", 3)); }},
    {"namespace_name", "\\xc3", [](Request& r, Descriptor&) { r.set_namespace_name("\xc3\xa4"); }},
    {"client_name", "129",
     [](Request& r, Descriptor&) { r.set_client_name(std::string(129, 'c')); }},
    {"namespace_descriptor", "required",
     [](Request& r, Descriptor&) { r.clear_namespace_descriptor(); }},
    {"range", "required", [](Request& r, Descriptor&) { r.clear_range(); }},
    {"model", "0", [](Request&, Descriptor& d) { d.clear_model(); }},
    {"model", "257", [](Request&, Descriptor& d) { d.set_model(std::string(257, 'm')); }},
    {"weights_digest", "129",
     [](Request&, Descriptor& d) { d.set_weights_digest(std::string(129, 'w')); }},
    {"layers", "0", [](Request&, Descriptor& d) { d.set_layers(0); }},
    {"layers", "1025", [](Request&, Descriptor& d) { d.set_layers(1025); }},
    {"layers", "4294967295", [](Request&, Descriptor& d) { d.set_layers(UINT32_MAX); }},
    {"kv_heads", "0", [](Request&, Descriptor& d) { d.set_kv_heads(0); }},
    {"kv_heads", "1025", [](Request&, Descriptor& d) { d.set_kv_heads(1025); }},
    {"head_size", "0", [](Request&, Descriptor& d) { d.set_head_size(0); }},
    {"head_size", "80", [](Request&, Descriptor& d) { d.set_head_size(80); }},
    {"head_size", "4294967232", [](Request&, Descriptor& d) { d.set_head_size(UINT32_MAX - 63); }},
    {"dtype", "0", [](Request&, Descriptor& d) { d.set_dtype(wire::DTYPE_UNSPECIFIED); }},
    {"dtype", "99", [](Request&, Descriptor& d) { d.set_dtype(static_cast<wire::DType>(99)); }},
    {"dtype", "-1", [](Request&, Descriptor& d) { d.set_dtype(static_cast<wire::DType>(-1)); }},
    {"rope", "1025", [](Request&, Descriptor& d) { d.set_rope(std::string(1025, 'r')); }},
    {"codec_set_id", "31",
     [](Request&, Descriptor& d) { d.set_codec_set_id(std::string(31, 'c')); }},
    {"codec_set_id", "33",
     [](Request&, Descriptor& d) { d.set_codec_set_id(std::string(33, 'c')); }},
    {"extra", "33",
     [](Request&, Descriptor& d) {
       for (int i = 0; i < 33; ++i) (*d.mutable_extra())[std::to_string(i)] = "";
     }},
    {"extra key", "257",
     [](Request&, Descriptor& d) { (*d.mutable_extra())[std::string(257, 'k')] = ""; }},
    {"extra[k]", "257",
     [](Request&, Descriptor& d) { (*d.mutable_extra())["k"] = std::string(257, 'v'); }},
    {"range.layer_end", "5", [](Request& r, Descriptor&) { r.mutable_range()->set_layer_end(5); }},
    {"range.layer_end", "0", [](Request& r, Descriptor&) { r.mutable_range()->set_layer_end(0); }},
    {"range.layer_begin", "4",
     [](Request& r, Descriptor&) { r.mutable_range()->set_layer_begin(4); }},
    {"range.layer_begin", "4294967295",
     [](Request& r, Descriptor&) { r.mutable_range()->set_layer_begin(UINT32_MAX); }},
    {"range.head_end", "3", [](Request& r, Descriptor&) { r.mutable_range()->set_head_end(3); }},
    {"range.head_begin", "2",
     [](Request& r, Descriptor&) { r.mutable_range()->set_head_begin(2); }},
};

TEST(ValidateSession, Good_Passes) { EXPECT_TRUE(CheckSessionRequest(Good()).ok()); }

TEST(ValidateSession, EachBadField_IsNamedWithItsValue) {
  for (const BadField& bad : kBadFields) {
    wire::SessionRequest request = Good();
    bad.apply(request, *request.mutable_namespace_descriptor());
    if (bad.value == "required" && bad.field == "namespace_descriptor") {
      request.clear_namespace_descriptor();
    }
    const absl::Status status = CheckSessionRequest(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.field << " " << bad.value;
    EXPECT_NE(status.message().find(bad.field), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find(bad.value), absl::string_view::npos) << status;
  }
}

}  // namespace
}  // namespace fq
