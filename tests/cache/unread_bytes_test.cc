#include "cache/unread_bytes.h"

#include <algorithm>
#include <string>

#include "tests/support/matchers.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;

class UnreadBytesTest : public ::testing::Test {
 protected:
  static std::shared_ptr<FetchFile> File() {
    FileInfo info;
    info.path = "model.bin";
    info.size = 100 * kG;
    return std::make_shared<FetchFile>(info, nullptr, milliseconds(1));
  }
  // Adds a granule, so long after the first of all; returns its bytes.
  const GranuleBytes* Add(const std::shared_ptr<FetchFile>& file,
                          uint64_t granule,
                          Clock::Time::duration since = milliseconds(0)) {
    auto bytes = std::make_shared<GranuleBytes>(kG);
    const GranuleBytes* const raw = bytes.get();
    unread_.Add(file, granule, std::move(bytes), 0, start_ + since);
    return raw;
  }
  // Whether the granule is there; it stays.
  bool Has(uint64_t granule) {
    return unread_.Read(*file_, granule, 1) != nullptr;
  }
  // Those of the file that are there, of the first ten.
  std::string Present() {
    std::string all;
    for (uint64_t g = 0; g < 10; ++g) {
      if (Has(g)) all += std::to_string(g);
    }
    return all;
  }

  const Clock::Time start_ = Clock::System().Now();
  UnreadBytes unread_;
  UnreadBytes::Dropped dropped_;
  const std::shared_ptr<FetchFile> file_ = File();
};

TEST_F(UnreadBytesTest, AReadToTheEndTakesAGranule) {
  const GranuleBytes* const bytes = Add(file_, 3);
  EXPECT_EQ(unread_.Read(*file_, 2, kG), nullptr);
  EXPECT_EQ(unread_.Read(*file_, 3, kG).get(), bytes);
  EXPECT_EQ(unread_.Read(*file_, 3, kG), nullptr);
  EXPECT_EQ(unread_.Age(start_, dropped_), Clock::Time::max());
  EXPECT_TRUE(file_->unread.empty());
}

TEST_F(UnreadBytesTest, AReadOfAPartLeavesIt) {
  const GranuleBytes* const bytes = Add(file_, 3);
  EXPECT_EQ(unread_.Read(*file_, 3, 1).get(), bytes);
  EXPECT_EQ(unread_.Read(*file_, 3, 1).get(), bytes);
  EXPECT_EQ(unread_.Read(*file_, 3, kG).get(), bytes);
}

TEST_F(UnreadBytesTest, AFilesGranulesAreItsOwn) {
  const auto other = File();
  Add(file_, 3);
  const GranuleBytes* const bytes = Add(other, 4);
  EXPECT_EQ(unread_.Read(*file_, 4, kG), nullptr);
  EXPECT_EQ(unread_.Read(*other, 3, kG), nullptr);
  EXPECT_EQ(unread_.Read(*other, 4, kG).get(), bytes);
}

TEST_F(UnreadBytesTest, TheOldestGoFirst) {
  for (const uint64_t g : {5, 1, 9, 3, 7}) Add(file_, g);
  unread_.Shrink(5 * kG, dropped_);
  EXPECT_EQ(Present(), "13579");
  unread_.Shrink(3 * kG + 1, dropped_);
  EXPECT_EQ(Present(), "379");
  // What was read does not count.
  unread_.Read(*file_, 3, kG);
  unread_.Shrink(2 * kG, dropped_);
  EXPECT_EQ(Present(), "79");
  unread_.Shrink(2 * kG - 1, dropped_);
  EXPECT_EQ(Present(), "7");
  unread_.Shrink(0, dropped_);
  EXPECT_EQ(Present(), "");
  unread_.Shrink(0, dropped_);  // nothing is left to go
}

TEST_F(UnreadBytesTest, WhatIsOldGoes) {
  const auto life = UnreadBytes::kLife;
  Add(file_, 1);
  Add(file_, 2, milliseconds(10));
  Add(file_, 3, milliseconds(20));
  EXPECT_EQ(unread_.Age(start_ + life - milliseconds(1), dropped_),
            start_ + life);
  EXPECT_EQ(Present(), "123");
  EXPECT_EQ(unread_.Age(start_ + life, dropped_),
            start_ + life + milliseconds(10));
  EXPECT_EQ(Present(), "23");
  // The oldest of those that nobody read says when to come again.
  unread_.Read(*file_, 2, kG);
  EXPECT_EQ(unread_.Age(start_ + life, dropped_),
            start_ + life + milliseconds(20));
  EXPECT_EQ(unread_.Age(start_ + 2 * life, dropped_), Clock::Time::max());
  EXPECT_EQ(Present(), "");
  // Its room is free: others are not let go for it.
  Add(file_, 4);
  unread_.Shrink(kG, dropped_);
  EXPECT_EQ(Present(), "4");
}

// So that no memory and no file is let go under the caller's mutex.
TEST_F(UnreadBytesTest, LastReferencesGoToTheCaller) {
  auto file = File();
  const std::weak_ptr<FetchFile> weak_file = file;
  auto bytes = std::make_shared<GranuleBytes>(kG);
  const std::weak_ptr<GranuleBytes> weak_bytes = bytes;
  unread_.Add(file, 1, std::move(bytes), 0, start_);
  unread_.Shrink(0, dropped_);
  EXPECT_FALSE(weak_bytes.expired());
  file.reset();
  EXPECT_FALSE(weak_file.expired());
  dropped_.clear();
  EXPECT_TRUE(weak_bytes.expired());
  EXPECT_TRUE(weak_file.expired());
}

TEST_F(UnreadBytesTest, KeepsNoFile) {
  auto dead = File();
  Add(dead, 1);
  Add(file_, 2, milliseconds(1));
  Add(dead, 3, milliseconds(2));
  Add(dead, 4, milliseconds(3));
  const std::weak_ptr<FetchFile> weak = dead;
  dead.reset();
  EXPECT_TRUE(weak.expired());
  unread_.Shrink(3 * kG, dropped_);
  EXPECT_EQ(Present(), "2");
  // One of a file that is gone counts until it goes.
  unread_.Shrink(2 * kG, dropped_);
  EXPECT_EQ(Present(), "");
  EXPECT_EQ(
      unread_.Age(start_ + UnreadBytes::kLife + milliseconds(2), dropped_),
      start_ + UnreadBytes::kLife + milliseconds(3));
  unread_.Shrink(0, dropped_);
  EXPECT_EQ(unread_.Age(start_, dropped_), Clock::Time::max());
}

}  // namespace
}  // namespace weightfs
