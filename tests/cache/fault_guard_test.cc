#include "cache/fault_guard.h"

#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <thread>
#include <vector>

#include "tests/cache/cache_fixture.h"

namespace weightfs {
namespace {

constexpr size_t kPage = 4096;

class FaultGuardTest : public ::testing::Test {
 protected:
  UniqueFd File(const std::string& name, size_t size) {
    UniqueFd fd(::open((temp_.path() + "/" + name).c_str(),
                       O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
    return fd;
  }
  static uint8_t Load(const GuardedMapping& mapping, size_t offset) {
    return std::atomic_ref<uint8_t>(
               reinterpret_cast<uint8_t&>(mapping.bytes()[offset]))
        .load();
  }

  TempFolder temp_;
};

TEST_F(FaultGuardTest, AFaultReadsZerosAndIsTold) {
  const UniqueFd fd = File("f", 4 * kPage);
  ASSERT_EQ(::pwrite(fd.get(), "x", 1, 0), 1);
  auto mapping = GuardedMapping::Map(fd.get(), 4 * kPage, "f");
  ASSERT_OK(mapping);
  EXPECT_EQ(Load(**mapping, 0), 'x');
  EXPECT_FALSE((*mapping)->faulted());
  ASSERT_EQ(::ftruncate(fd.get(), kPage), 0);
  EXPECT_EQ(Load(**mapping, 2 * kPage), 0);
  EXPECT_TRUE((*mapping)->faulted());
  EXPECT_EQ(Load(**mapping, 0), 0) << "none of it is trusted";
}

TEST_F(FaultGuardTest, StoresAreCaughtToo) {
  const UniqueFd fd = File("f", kPage);
  auto mapping = GuardedMapping::Map(fd.get(), kPage, "f");
  ASSERT_OK(mapping);
  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  (*mapping)->bytes()[10] = std::byte{1};
  EXPECT_TRUE((*mapping)->faulted());
}

TEST_F(FaultGuardTest, OneFaultLeavesOtherMappingsAlone) {
  // More than one chunk of the registry.
  const UniqueFd fd = File("f", kPage);
  std::vector<std::unique_ptr<GuardedMapping>> mappings;
  for (int i = 0; i < 600; ++i) {
    auto mapping = GuardedMapping::Map(fd.get(), kPage, "f");
    ASSERT_OK(mapping);
    mappings.push_back(std::move(mapping).value());
  }
  const UniqueFd other = File("g", kPage);
  auto last = GuardedMapping::Map(other.get(), kPage, "g");
  ASSERT_OK(last);
  ASSERT_EQ(::ftruncate(other.get(), 0), 0);
  EXPECT_EQ(Load(**last, 0), 0);
  EXPECT_TRUE((*last)->faulted());
  for (const auto& mapping : mappings) EXPECT_FALSE(mapping->faulted());
  // Slots are used again, as new.
  last = GuardedMapping::Map(fd.get(), kPage, "f");
  ASSERT_OK(last);
  EXPECT_FALSE((*last)->faulted());
}

TEST_F(FaultGuardTest, ThreadsFaultWhileOthersMapAndUnmap) {
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const UniqueFd fd = File(std::to_string(t), 2 * kPage);
      for (int i = 0; i < 300; ++i) {
        ASSERT_EQ(::ftruncate(fd.get(), 2 * kPage), 0);
        auto mapping = GuardedMapping::Map(fd.get(), 2 * kPage, "f");
        ASSERT_OK(mapping);
        ASSERT_EQ(Load(**mapping, kPage), 0);
        ASSERT_FALSE((*mapping)->faulted());
        ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
        ASSERT_EQ(Load(**mapping, kPage), 0);
        ASSERT_TRUE((*mapping)->faulted());
      }
    });
  }
}

// In a child, which dies of it: a fault of another mapping is not ours.
TEST_F(FaultGuardTest, OtherFaultsEndTheProcessAsBefore) {
  const UniqueFd fd = File("f", kPage);
  Child child([&]() -> int {
    ::signal(SIGBUS, SIG_DFL);  // not a sanitizer's
    auto mapping = GuardedMapping::Map(fd.get(), kPage, "f");
    if (!mapping.has_value()) return 2;
    void* other = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (::ftruncate(fd.get(), 0) != 0) return 3;
    return *static_cast<volatile const char*>(other) == 0 ? 4 : 5;
  });
  EXPECT_EQ(child.Wait(), -SIGBUS);
}

TEST_F(FaultGuardTest, ASignalThatIsSentEndsTheProcessAsBefore) {
  const UniqueFd fd = File("f", kPage);
  Child child([&]() -> int {
    ::signal(SIGBUS, SIG_DFL);
    auto mapping = GuardedMapping::Map(fd.get(), kPage, "f");
    ::raise(SIGBUS);
    return 2;
  });
  EXPECT_EQ(child.Wait(), -SIGBUS);
}

}  // namespace
}  // namespace weightfs
