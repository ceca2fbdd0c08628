// What ThreadSanitizer must not judge in tests that run a node. Distributions build gRPC, upb and
// abseil without the sanitizer: it sees none of their locks and queues, so all that one gRPC thread
// hands to another looks like a race. Accesses below a frame of these libraries are theirs; what
// our own workers do among themselves is still judged.
extern "C" const char* __tsan_default_suppressions() {
  return "race:libgrpc.so\n"
         "race:libgrpc++.so\n"
         "race:libgrpc++_reflection.so\n"
         "race:libgpr.so\n"
         // Code of its headers, compiled into us: what a client reads a gRPC thread has written,
         // and a server goes when its calls have, by counts of gRPC's own.
         "race:grpc::internal::CallOpClientRecvStatus\n"
         "race:grpc::internal::Call::PerformOps\n"
         "race:libupb.so\n"
         // Reference counts inside absl::Status and text that gRPC thread pools build.
         "race:libabsl_status.so\n"
         "race:libabsl_cord.so\n"
         "race:libabsl_cord_internal.so\n"
         "race:libabsl_time.so\n"
         "race:libabsl_strings.so\n"
         // Lock-order bookkeeping inside absl::Mutex.
         "race:libabsl_graphcycles_internal.so\n"
         "mutex:libgrpc.so\n"
         "deadlock:libgrpc.so\n";
}
