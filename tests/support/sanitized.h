// WEIGHTFS_SANITIZED is defined in builds with the address or the thread
// sanitizer, where long tests do fewer rounds.

#ifndef WEIGHTFS_TESTS_SUPPORT_SANITIZED_H_
#define WEIGHTFS_TESTS_SUPPORT_SANITIZED_H_

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WEIGHTFS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define WEIGHTFS_SANITIZED 1
#endif
#endif

#endif  // WEIGHTFS_TESTS_SUPPORT_SANITIZED_H_
