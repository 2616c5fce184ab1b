#include "cache/local_disk.h"

#include <gtest/gtest.h>

namespace weightfs {
namespace {

TEST(LocalDiskTest, NetworksAndFuseAreNone) {
  EXPECT_TRUE(IsOnLocalDisk("/dev/shm")) << "a tmpfs";
  EXPECT_FALSE(IsOnLocalDisk("/proc"));
  EXPECT_FALSE(IsOnLocalDisk("/sys"));
  EXPECT_FALSE(IsOnLocalDisk("/nowhere/at/all"));
}

}  // namespace
}  // namespace weightfs
