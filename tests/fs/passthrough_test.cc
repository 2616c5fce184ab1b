// Which files are passed through, and what is registered for that, when.

#include "fs/fuse/passthrough.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <set>

#include "formats/base/unique_fd.h"
#include "fs/node_id.h"
#include "tests/support/fake_cache_file.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::Eq;
using ::testing::HasSubstr;
using ::testing::Optional;

constexpr uint64_t Node(uint32_t file) {
  return PackNode({.kind = NodeKind::kRepoFile, .ordinal = file});
}

// What a device saw; it outlives it.
struct Kernel {
  std::set<int> registered;
  int next = 1;
  int error = 0;  // of each Open, if it is not 0
  size_t opens = 0;
};

class FakeDevice final : public Passthrough::Device {
 public:
  explicit FakeDevice(Kernel& kernel) : kernel_(kernel) {}
  int Open(int fd) override {
    ++kernel_.opens;
    EXPECT_GE(::fcntl(fd, F_GETFD), 0);
    EXPECT_EQ(::fcntl(fd, F_GETFL) & O_DIRECT, 0);
    if (kernel_.error != 0) return -kernel_.error;
    kernel_.registered.insert(kernel_.next);
    return kernel_.next++;
  }
  void Close(int id) override { EXPECT_EQ(kernel_.registered.erase(id), 1u); }

 private:
  Kernel& kernel_;
};

class PassthroughTest : public ::testing::Test {
 protected:
  void SetUp() override {
    passthrough_.Expect();
    passthrough_.On(std::make_unique<FakeDevice>(kernel_));
    ASSERT_TRUE(passthrough_.totals().on);
    ASSERT_TRUE(kernel_.registered.empty()) << "the probe is closed";
    kernel_.next = 1;
    const std::array<uint64_t, 1> nodes = {Node(1)};
    passthrough_.CountLookups(nodes);
  }

  // As Repo::ShareFile gives it: a file of the number `inode`.
  Repo::Sharing Sealed(uint64_t inode = 7) {
    Repo::Sharing sharing;
    std::FILE* file = std::tmpfile();
    sharing.sealed =
        Repo::Shared{UniqueFd(::dup(::fileno(file))), cached_, {1, inode}};
    std::fclose(file);
    return sharing;
  }
  static Repo::Sharing NotSealed() { return {}; }
  static Repo::Sharing InUseIsWrong() {
    Repo::Sharing sharing;
    sharing.in_use_is_wrong = true;
    return sharing;
  }

  Kernel kernel_;
  std::shared_ptr<CacheFile> cached_ = std::make_shared<FakeCacheFile>(1);
  Passthrough passthrough_{milliseconds(1)};
};

TEST_F(PassthroughTest, OnlyWhatIsSealedIsPassedThrough) {
  EXPECT_THAT(passthrough_.Open(Node(1), NotSealed()), Optional(0));
  passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  EXPECT_THAT(kernel_.registered, ElementsAre(1));
  EXPECT_EQ(passthrough_.totals().opens, 1u);
  EXPECT_EQ(passthrough_.totals().registered, 1u);
  const uint64_t tensor = PackNode({.kind = NodeKind::kTensorFile});
  EXPECT_THAT(passthrough_.Open(tensor, Sealed()), Optional(0));
}

// Two modes at once are an EIO for who opens.
TEST_F(PassthroughTest, AllHandlesOfANodeAreInOneMode) {
  EXPECT_THAT(passthrough_.Open(Node(1), NotSealed()), Optional(0));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(0));
  passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(0));
  passthrough_.Release(Node(1));
  passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  // The cache did not answer, or was removed: it is the same file still.
  EXPECT_THAT(passthrough_.Open(Node(1), NotSealed()), Optional(1));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed(8)), Optional(1));
  for (int i = 0; i < 3; ++i) passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.Open(Node(1), NotSealed()), Optional(0));
}

// A mapping keeps the node, and neither handle nor anything else.
TEST_F(PassthroughTest, ARegistrationEndsWhenTheNodeIsForgotten) {
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  passthrough_.Release(Node(1));
  EXPECT_THAT(kernel_.registered, ElementsAre(1)) << "closed at a release";
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1)) << "the same";
  passthrough_.Release(Node(1));
  // Looked up twice more.
  const std::array<uint64_t, 2> nodes = {Node(1), Node(1)};
  passthrough_.CountLookups(nodes);
  passthrough_.Forget(Node(1), 2);
  EXPECT_THAT(kernel_.registered, ElementsAre(1)) << "it is known still";
  passthrough_.Forget(Node(1), 1);
  EXPECT_THAT(kernel_.registered, ElementsAre());
  EXPECT_EQ(passthrough_.totals().registered, 0u);
}

// The kernel sends the release first; another thread may be quicker.
TEST_F(PassthroughTest, AForgetMayOvertakeTheRelease) {
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  passthrough_.Forget(Node(1), 1);
  EXPECT_THAT(kernel_.registered, ElementsAre(1));
  passthrough_.Release(Node(1));
  EXPECT_THAT(kernel_.registered, ElementsAre());
}

// The object was made anew. Mappings of the old one may be there.
TEST_F(PassthroughTest, AnotherFileIsRegisteredBesideTheFirst) {
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed(7)), Optional(1));
  passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed(8)), Optional(2));
  EXPECT_THAT(kernel_.registered, ElementsAre(1, 2));
  passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.Open(Node(1), NotSealed()), Optional(0));
  passthrough_.Release(Node(1));
  passthrough_.Forget(Node(1), 1);
  EXPECT_THAT(kernel_.registered, ElementsAre());
}

TEST_F(PassthroughTest, WhatWasFoundWrongIsOpenedNoMore) {
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  std::shared_ptr<CacheFile> in_use;
  EXPECT_TRUE(passthrough_.Wants(Node(1), in_use));
  EXPECT_EQ(in_use, cached_);
  EXPECT_THAT(passthrough_.Open(Node(1), InUseIsWrong()), Eq(std::nullopt));
  passthrough_.Release(Node(1));
  // Nobody has it open: it is read by way of the daemon.
  in_use.reset();
  EXPECT_TRUE(passthrough_.Wants(Node(1), in_use));
  EXPECT_EQ(in_use, nullptr);
  EXPECT_THAT(passthrough_.Open(Node(1), NotSealed()), Optional(0));
  EXPECT_FALSE(passthrough_.Wants(Node(1), in_use)) << "it is open cached";
}

TEST_F(PassthroughTest, TurnsItselfOffWhereTheKernelRefuses) {
  kernel_.error = ENOMEM;
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(0));
  passthrough_.Release(Node(1));
  EXPECT_TRUE(passthrough_.totals().on) << "another time it may work";
  kernel_.error = ELOOP;
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(0));
  passthrough_.Release(Node(1));
  EXPECT_FALSE(passthrough_.totals().on);
  EXPECT_THAT(passthrough_.totals().why, HasSubstr("stacked"));
  const size_t opens = kernel_.opens;
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(0));
  EXPECT_EQ(kernel_.opens, opens) << "it is not asked again";
  std::shared_ptr<CacheFile> in_use;
  EXPECT_FALSE(passthrough_.Wants(Node(2), in_use));
}

TEST_F(PassthroughTest, WhatIsOpenThroughStaysSoWhenItIsTurnedOff) {
  const std::array<uint64_t, 1> nodes = {Node(2)};
  passthrough_.CountLookups(nodes);
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  kernel_.error = EPERM;
  EXPECT_THAT(passthrough_.Open(Node(2), Sealed(8)), Optional(0));
  EXPECT_FALSE(passthrough_.totals().on);
  std::shared_ptr<CacheFile> in_use;
  EXPECT_TRUE(passthrough_.Wants(Node(1), in_use));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  passthrough_.Release(Node(1));
  passthrough_.Release(Node(1));
  passthrough_.Forget(Node(1), 1);
  EXPECT_THAT(kernel_.registered, ElementsAre());
}

TEST_F(PassthroughTest, WhatNobodyHasOpenIsForgottenOnce) {
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.TakeIdle(), ElementsAre(Node(1)));
  // A look-up gives it a name again.
  const std::array<uint64_t, 1> again = {Node(1)};
  passthrough_.CountLookups(again);
  EXPECT_THAT(passthrough_.TakeIdle(), ElementsAre(Node(1)));
  // A cached one pins nothing, and what was opened again is not idle.
  const std::array<uint64_t, 2> nodes = {Node(2), Node(3)};
  passthrough_.CountLookups(nodes);
  EXPECT_THAT(passthrough_.Open(Node(2), NotSealed()), Optional(0));
  passthrough_.Release(Node(2));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  passthrough_.Release(Node(1));
  EXPECT_THAT(passthrough_.Open(Node(1), Sealed()), Optional(1));
  EXPECT_THAT(passthrough_.Open(Node(3), Sealed(8)), Optional(2));
  passthrough_.Release(Node(3));
  EXPECT_THAT(passthrough_.TakeIdle(), ElementsAre(Node(3)));
  passthrough_.Stop();
  EXPECT_THAT(passthrough_.TakeIdle(), ElementsAre());
}

TEST(PassthroughStartTest, WithoutPrivilegeItIsOffAndSaysWhy) {
  Kernel kernel;
  kernel.error = EPERM;
  Passthrough passthrough(hours(1));
  passthrough.Expect();
  passthrough.On(std::make_unique<FakeDevice>(kernel));
  EXPECT_FALSE(passthrough.totals().on);
  EXPECT_THAT(passthrough.totals().why, HasSubstr("root"));
  std::shared_ptr<CacheFile> in_use;
  EXPECT_FALSE(passthrough.Wants(Node(1), in_use));
  EXPECT_THAT(passthrough.Open(Node(1), {}), Optional(0));
  passthrough.Release(Node(1));
}

// A descriptor that is no mount's: the real device fails, and nothing more.
TEST(PassthroughStartTest, AKernelWithoutItIsNoHarm) {
  const UniqueFd null_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  Passthrough passthrough(hours(1));
  passthrough.Expect();
  passthrough.On(Passthrough::KernelDevice(null_fd.get()));
  EXPECT_FALSE(passthrough.totals().on);
  EXPECT_THAT(passthrough.totals().why, HasSubstr("the kernel refuses"));
}

}  // namespace
}  // namespace weightfs
