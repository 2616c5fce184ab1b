#include "cache/object.h"

#include <thread>

#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;

class ObjectSourceTest : public FetcherTest {};

TEST_F(ObjectSourceTest, ReadsWhileItsThreadWaits) {
  Open(3 * kG);
  origin_.Play(1, [](const FakeOrigin::Start&) { return FakeOrigin::Plot(); });
  ObjectSource source(object_, std::chrono::minutes(1));
  EXPECT_EQ(source.size(), 3 * kG);
  EXPECT_EQ(source.name(), "model.bin");
  std::vector<std::byte> out(kG + 10);
  ASSERT_OK(source.ReadAt(kG - 5, out));
  EXPECT_EQ(out, FakeBytes(info_.path, kG - 5, kG + 10));
  EXPECT_OK(source.ReadAt(3 * kG, {}));
  EXPECT_THAT(source.ReadAt(3 * kG - 5, out), HasCode(Code::kInvalid));
}

TEST_F(ObjectSourceTest, ReadsWithoutATimeout) {
  Open(kG);
  origin_.Play(1, [](const FakeOrigin::Start&) { return FakeOrigin::Plot(); });
  ObjectSource source(object_, Clock::Time::duration::max());
  std::vector<std::byte> out(10);
  EXPECT_OK(source.ReadAt(1, out));
}

TEST_F(ObjectSourceTest, EndsAtItsTimeout) {
  Open(kG);
  ObjectSource source(object_, std::chrono::milliseconds(5));
  std::vector<std::byte> out(10);
  EXPECT_THAT(source.ReadAt(0, out), HasCode(Code::kUnavailable));
}

TEST_F(ObjectSourceTest, EndsThoughThePoolIsStuck) {
  Open(kG);
  for (int i = 0; i < 8; ++i) pool_.Submit([&] { gate_.Pass(); });
  gate_.WaitForWaiters(8);
  ObjectSource source(object_, std::chrono::milliseconds(5));
  std::vector<std::byte> out(10);
  EXPECT_THAT(source.ReadAt(0, out),
              HasMessage(HasSubstr("did not end at its deadline")));
  gate_.Open();
}

TEST_F(ObjectSourceTest, PassesErrorsOn) {
  Open(kG);
  origin_.Play(1, [](const FakeOrigin::Start&) {
    return FakeOrigin::Plot{.give = 3, .result = Error(Code::kDenied, "gated")};
  });
  ObjectSource source(object_, std::chrono::minutes(1));
  std::vector<std::byte> out(10);
  EXPECT_THAT(source.ReadAt(0, out), HasCode(Code::kDenied));
}

}  // namespace
}  // namespace weightfs
