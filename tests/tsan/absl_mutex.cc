// Tells ThreadSanitizer about absl::Mutex, CondVar and Notification. Distributions build abseil
// without the sanitizer, which then sees no lock taken and reports a race for all that a mutex
// guards. The linker (absl_mutex.cmake) sends our calls here; each goes on to the real one.
#include <sanitizer/tsan_interface.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

// Names as the compiler mangles them: absl::debian3::Mutex::Lock() and so on.
#define FQ_MUTEX(name) _ZN4absl7debian35Mutex##name
#define FQ_CONDVAR(name) _ZN4absl7debian37CondVar##name
#define FQ_NOTIFY _ZN4absl7debian312Notification6NotifyEv
#define FQ_AWAIT _ZNK4absl7debian312Notification19WaitForNotificationEv
#define FQ_TIMED_AWAIT \
  _ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE
#define FQ_JOIN(a, b) a##b
#define FQ_NAME(a, b) FQ_JOIN(a, b)
#define FQ_REAL(symbol) FQ_NAME(__real_, symbol)
#define FQ_WRAP(symbol) FQ_NAME(__wrap_, symbol)

namespace {

class Locking {
 public:
  Locking(void* mutex, unsigned flags) : mutex_(mutex), flags_(flags) {
    __tsan_mutex_pre_lock(mutex_, flags_);
  }
  ~Locking() { __tsan_mutex_post_lock(mutex_, flags_, 0); }
  void Failed() { flags_ |= __tsan_mutex_try_lock_failed; }

 private:
  void* mutex_;
  unsigned flags_;
};

class Unlocking {
 public:
  Unlocking(void* mutex, unsigned flags) : mutex_(mutex), flags_(flags) {
    __tsan_mutex_pre_unlock(mutex_, flags_);
  }
  ~Unlocking() { __tsan_mutex_post_unlock(mutex_, flags_); }

 private:
  void* mutex_;
  unsigned flags_;
};

// A wait lets go of the mutex and takes it again.
class Waiting {
 public:
  explicit Waiting(void* mutex) : mutex_(mutex) { Unlocking unlocking(mutex_, 0); }
  ~Waiting() { Locking locking(mutex_, 0); }

 private:
  void* mutex_;
};

}  // namespace

extern "C" {

void FQ_REAL(FQ_MUTEX(4LockEv))(absl::Mutex*);
void FQ_WRAP(FQ_MUTEX(4LockEv))(absl::Mutex* mutex) {
  Locking locking(mutex, 0);
  FQ_REAL(FQ_MUTEX(4LockEv))(mutex);
}

void FQ_REAL(FQ_MUTEX(6UnlockEv))(absl::Mutex*);
void FQ_WRAP(FQ_MUTEX(6UnlockEv))(absl::Mutex* mutex) {
  Unlocking unlocking(mutex, 0);
  FQ_REAL(FQ_MUTEX(6UnlockEv))(mutex);
}

bool FQ_REAL(FQ_MUTEX(7TryLockEv))(absl::Mutex*);
bool FQ_WRAP(FQ_MUTEX(7TryLockEv))(absl::Mutex* mutex) {
  Locking locking(mutex, __tsan_mutex_try_lock);
  const bool taken = FQ_REAL(FQ_MUTEX(7TryLockEv))(mutex);
  if (!taken) locking.Failed();
  return taken;
}

void FQ_REAL(FQ_MUTEX(10ReaderLockEv))(absl::Mutex*);
void FQ_WRAP(FQ_MUTEX(10ReaderLockEv))(absl::Mutex* mutex) {
  Locking locking(mutex, __tsan_mutex_read_lock);
  FQ_REAL(FQ_MUTEX(10ReaderLockEv))(mutex);
}

void FQ_REAL(FQ_MUTEX(12ReaderUnlockEv))(absl::Mutex*);
void FQ_WRAP(FQ_MUTEX(12ReaderUnlockEv))(absl::Mutex* mutex) {
  Unlocking unlocking(mutex, __tsan_mutex_read_lock);
  FQ_REAL(FQ_MUTEX(12ReaderUnlockEv))(mutex);
}

void FQ_REAL(FQ_MUTEX(5AwaitERKNS0_9ConditionE))(absl::Mutex*, const absl::Condition*);
void FQ_WRAP(FQ_MUTEX(5AwaitERKNS0_9ConditionE))(absl::Mutex* mutex, const absl::Condition* until) {
  Waiting waiting(mutex);
  FQ_REAL(FQ_MUTEX(5AwaitERKNS0_9ConditionE))(mutex, until);
}

void FQ_REAL(FQ_CONDVAR(4WaitEPNS0_5MutexE))(absl::CondVar*, absl::Mutex*);
void FQ_WRAP(FQ_CONDVAR(4WaitEPNS0_5MutexE))(absl::CondVar* changed, absl::Mutex* mutex) {
  Waiting waiting(mutex);
  FQ_REAL(FQ_CONDVAR(4WaitEPNS0_5MutexE))(changed, mutex);
}

#define FQ_TIMED_WAIT(symbol, Time)                                            \
  bool FQ_REAL(symbol)(absl::CondVar*, absl::Mutex*, Time);                    \
  bool FQ_WRAP(symbol)(absl::CondVar * changed, absl::Mutex * mutex, Time t) { \
    Waiting waiting(mutex);                                                    \
    return FQ_REAL(symbol)(changed, mutex, t);                                 \
  }
FQ_TIMED_WAIT(FQ_CONDVAR(15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE), absl::Duration)
FQ_TIMED_WAIT(FQ_CONDVAR(16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE), absl::Time)

// What comes before Notify() comes before what follows the wait.
void FQ_REAL(FQ_NOTIFY)(absl::Notification*);
void FQ_WRAP(FQ_NOTIFY)(absl::Notification* notification) {
  __tsan_release(notification);
  FQ_REAL(FQ_NOTIFY)(notification);
}

void FQ_REAL(FQ_AWAIT)(const absl::Notification*);
void FQ_WRAP(FQ_AWAIT)(const absl::Notification* notification) {
  FQ_REAL(FQ_AWAIT)(notification);
  __tsan_acquire(const_cast<absl::Notification*>(notification));
}

bool FQ_REAL(FQ_TIMED_AWAIT)(const absl::Notification*, absl::Duration);
bool FQ_WRAP(FQ_TIMED_AWAIT)(const absl::Notification* notification, absl::Duration t) {
  const bool notified = FQ_REAL(FQ_TIMED_AWAIT)(notification, t);
  if (notified) __tsan_acquire(const_cast<absl::Notification*>(notification));
  return notified;
}

}  // extern "C"
