// How much memory fetched bytes may take until their readers and the disk have
// them.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TOOLS_MEMORY_BUDGET_H_
#define WEIGHTFS_TOOLS_MEMORY_BUDGET_H_

#include <cstdint>
#include <string>

namespace weightfs {

// Bytes: kLargestBudget, or a twentieth of what the machine has, or of what the
// control groups (of either version) that this process is in may take, if that
// is less; kSmallestBudget at least. What cannot be read counts as no limit.
// `root`: of the file system, for tests.
uint64_t MemoryBudget(const std::string& root = "");

inline constexpr uint64_t kLargestBudget = uint64_t{256} << 20;
inline constexpr uint64_t kSmallestBudget = uint64_t{16} << 20;

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_MEMORY_BUDGET_H_
