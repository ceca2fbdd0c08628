// A node between a node and one that asks it: passes calls on and lets a test change or hold up
// what comes back. For tests of what other nodes may do to us; hooks run on gRPC's threads.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "tests/testing/running_node.h"

namespace fq {

class ForwardingNode final : public flashquant::v1::KvCache::Service {
 public:
  // What a test does with a reply; another status than OK is sent instead.
  template <typename Reply>
  using Hook = std::function<grpc::Status(grpc::ServerContext&, Reply&)>;

  explicit ForwardingNode(const RunningNode& behind)
      : stub_(flashquant::v1::KvCache::NewStub(behind.Connect())) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address(), grpc::InsecureServerCredentials());
    builder.SetMaxSendMessageSize(-1);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~ForwardingNode() override { Die(); }

  std::string address() const { return "unix://" + folder_.path() + "/fq.sock"; }

  // Set before the first call.
  Hook<flashquant::v1::SessionResponse> on_session;
  Hook<flashquant::v1::LookupResponse> on_lookup;
  Hook<flashquant::v1::LoadResponse> on_load;
  Hook<flashquant::v1::OpenPeerLinkResponse> on_link;

  // Ends every connection, calls under way included. Not from a hook.
  void Die() { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status Session(grpc::ServerContext* context,
                       grpc::ServerReaderWriter<flashquant::v1::SessionResponse,
                                                flashquant::v1::SessionRequest>* stream) override {
    flashquant::v1::SessionRequest request;
    if (!stream->Read(&request)) return grpc::Status::OK;
    grpc::ClientContext upstream;
    auto behind = stub_->Session(&upstream);
    flashquant::v1::SessionResponse reply;
    if (!behind->Write(request) || !behind->Read(&reply)) return behind->Finish();
    const grpc::Status status = Changed(on_session, *context, reply);
    if (status.ok()) stream->Write(reply);
    while (status.ok() && stream->Read(&request)) {
    }
    upstream.TryCancel();
    behind->Finish();
    return status;
  }

  grpc::Status Lookup(grpc::ServerContext* context, const flashquant::v1::LookupRequest* request,
                      flashquant::v1::LookupResponse* reply) override {
    grpc::ClientContext upstream;
    const grpc::Status status = stub_->Lookup(&upstream, *request, reply);
    return status.ok() ? Changed(on_lookup, *context, *reply) : status;
  }

  grpc::Status Load(grpc::ServerContext* context, const flashquant::v1::LoadRequest* request,
                    flashquant::v1::LoadResponse* reply) override {
    grpc::ClientContext upstream;
    const grpc::Status status = stub_->Load(&upstream, *request, reply);
    return status.ok() ? Changed(on_load, *context, *reply) : status;
  }

  grpc::Status OpenPeerLink(grpc::ServerContext* context,
                            const flashquant::v1::OpenPeerLinkRequest* request,
                            flashquant::v1::OpenPeerLinkResponse* reply) override {
    grpc::ClientContext upstream;
    const grpc::Status status = stub_->OpenPeerLink(&upstream, *request, reply);
    return status.ok() ? Changed(on_link, *context, *reply) : status;
  }

 private:
  template <typename Reply>
  static grpc::Status Changed(const Hook<Reply>& hook, grpc::ServerContext& context, Reply& reply) {
    return hook ? hook(context, reply) : grpc::Status::OK;
  }

  TempFolder folder_;
  std::unique_ptr<flashquant::v1::KvCache::Stub> stub_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace fq
