# Every target after this one tells ThreadSanitizer about absl's locks; why: absl_mutex.cc.
add_library(fq_absl_mutex_tsan OBJECT ${CMAKE_CURRENT_LIST_DIR}/absl_mutex.cc)
target_link_libraries(fq_absl_mutex_tsan PUBLIC absl::synchronization)
foreach(symbol
    5Mutex4LockEv 5Mutex6UnlockEv 5Mutex7TryLockEv 5Mutex10ReaderLockEv 5Mutex12ReaderUnlockEv
    5Mutex5AwaitERKNS0_9ConditionE 7CondVar4WaitEPNS0_5MutexE
    7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE
    7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE)
  target_link_options(fq_absl_mutex_tsan PUBLIC -Wl,--wrap=_ZN4absl7debian3${symbol})
endforeach()
target_link_options(fq_absl_mutex_tsan PUBLIC
  -Wl,--wrap=_ZN4absl7debian312Notification6NotifyEv
  -Wl,--wrap=_ZNK4absl7debian312Notification19WaitForNotificationEv
  -Wl,--wrap=_ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE)
link_libraries(fq_absl_mutex_tsan)
