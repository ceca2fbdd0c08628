// Checked wire messages as the plain values that the node works on. Pure functions, any thread;
// call them only with what validate_*.h has passed.
#pragma once

#include <vector>

#include "absl/strings/string_view.h"
#include "server/descriptor.h"
#include "server/namespaces.h"
#include "server/page_layout.h"
#include "server/page_path.h"
#include "server/rpc/wire.h"

namespace fq {

Descriptor ToDescriptor(const wire::NamespaceDescriptor& message);
void FillDescriptor(const Descriptor& descriptor, wire::NamespaceDescriptor& message);
Range ToRange(const wire::SlabRange& message);
PageLayout ToLayout(const wire::PageLayout& message);
PagesAt ToPages(const wire::Pages& message);
std::vector<BlockKey> ToKeys(absl::string_view bytes);
Profile ToFloor(wire::Profile min_profile);
// What another node's Load says of a block that it does not deliver, which may be anything.
BlockOutcome NotDelivered(wire::BlockStatus status);
// Without the pages, whose memory the caller finds.
StoreCall ToStoreCall(const wire::StoreRequest& request);

}  // namespace fq
