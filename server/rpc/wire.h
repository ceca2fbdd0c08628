// The wire's messages under a short name. Only server/rpc sees them.
#pragma once

#include "flashquant/v1/admin.pb.h"
#include "flashquant/v1/kv_cache.pb.h"

namespace fq {
namespace wire = ::flashquant::v1;
}  // namespace fq
