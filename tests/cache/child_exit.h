// How the children of the tests of processes that share a cache end: a status
// that says where one went wrong.

#ifndef WEIGHTFS_TESTS_CACHE_CHILD_EXIT_H_
#define WEIGHTFS_TESTS_CACHE_CHILD_EXIT_H_

namespace weightfs {

enum ChildExit {
  kFine = 0,
  kNoCache = 2,
  kNoObject,
  kNoPut,
  kNoRead,
  kWrongBytes,
  kNoShare,
  kNoMapping,
  kTimeout
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_CHILD_EXIT_H_
