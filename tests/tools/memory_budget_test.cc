#include "tools/memory_budget.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/support/sizes.h"

namespace weightfs {
namespace {

class MemoryBudgetTest : public ::testing::Test {
 protected:
  MemoryBudgetTest()
      : root_(::testing::TempDir() + "/memory-budget-" +
              std::to_string(::getpid())) {
    std::filesystem::remove_all(root_);
  }
  ~MemoryBudgetTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path whole = root_ + path;
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << text;
  }
  void Machine(uint64_t mib) {
    Write("/proc/meminfo", "MemTotal:       " + std::to_string(mib * 1024) +
                               " kB\nMemFree:  1 kB\n");
  }

  const std::string root_;
};

TEST_F(MemoryBudgetTest, IsATwentiethWithinItsBounds) {
  Machine(2000);
  EXPECT_EQ(MemoryBudget(root_), 100 * kMiB);
  Machine(100'000);
  EXPECT_EQ(MemoryBudget(root_), kLargestBudget);
  Machine(64);
  EXPECT_EQ(MemoryBudget(root_), kSmallestBudget);
}

TEST_F(MemoryBudgetTest, AGroupsLimitCounts) {
  Machine(100'000);
  Write("/proc/self/cgroup", "0::/a/b\n");
  Write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  Write("/sys/fs/cgroup/a/memory.max", std::to_string(1000 * kMiB) + "\n");
  EXPECT_EQ(MemoryBudget(root_), 50 * kMiB);
  Write("/sys/fs/cgroup/a/b/memory.max", std::to_string(600 * kMiB) + "\n");
  EXPECT_EQ(MemoryBudget(root_), 30 * kMiB);
  // What a container sees.
  Write("/sys/fs/cgroup/memory.max", std::to_string(400 * kMiB) + "\n");
  EXPECT_EQ(MemoryBudget(root_), 20 * kMiB);
}

TEST_F(MemoryBudgetTest, AGroupOfTheFirstVersionCounts) {
  Machine(100'000);
  Write("/proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n0::/\n");
  Write("/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
        std::to_string(800 * kMiB) + "\n");
  EXPECT_EQ(MemoryBudget(root_), 40 * kMiB);
}

TEST_F(MemoryBudgetTest, WhatCannotBeReadIsNoLimit) {
  EXPECT_EQ(MemoryBudget(root_), kLargestBudget);
  Write("/proc/meminfo", "MemTotal: \nMemTotal: x kB\n");
  Write("/proc/self/cgroup", "nonsense\n0:\n::\n1:memory:x\n");
  EXPECT_EQ(MemoryBudget(root_), kLargestBudget);
}

TEST_F(MemoryBudgetTest, OfThisMachine) {
  EXPECT_GE(MemoryBudget(), kSmallestBudget);
  EXPECT_LE(MemoryBudget(), kLargestBudget);
}

}  // namespace
}  // namespace weightfs
