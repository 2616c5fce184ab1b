#include "cache/courtesy.h"

#include <gtest/gtest.h>

namespace weightfs {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

TEST(CourtesyTest, DoesNotRestOnAProcessorOfItsOwn) {
  Courtesy courtesy;
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(courtesy.AfterPiece(microseconds(1000), microseconds(1100)),
              Courtesy::Duration());
  }
}

TEST(CourtesyTest, RestsLongerAndLongerBesideOthers) {
  Courtesy courtesy;
  EXPECT_EQ(courtesy.AfterPiece(milliseconds(1), milliseconds(2)),
            Courtesy::kFirstRest);
  EXPECT_EQ(courtesy.AfterPiece(milliseconds(1), milliseconds(2)),
            2 * Courtesy::kFirstRest);
  for (int i = 0; i < 100; ++i) {
    courtesy.AfterPiece(milliseconds(1), milliseconds(50));
  }
  EXPECT_EQ(courtesy.AfterPiece(milliseconds(1), milliseconds(50)),
            Courtesy::kLongestRest);
}

TEST(CourtesyTest, ForgetsOthersThatAreGone) {
  Courtesy courtesy;
  for (int i = 0; i < 100; ++i) {
    courtesy.AfterPiece(milliseconds(1), milliseconds(2));
  }
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(courtesy.AfterPiece(milliseconds(1), milliseconds(1)),
              Courtesy::Duration());
  }
  EXPECT_EQ(courtesy.AfterPiece(milliseconds(1), milliseconds(2)),
            Courtesy::kFirstRest);
}

TEST(CourtesyTest, CountsTheTimeOfItsThread) {
  const auto before = Courtesy::OwnTime();
  volatile unsigned sum = 0;
  while (Courtesy::OwnTime() - before < milliseconds(2)) sum = sum + 1;
  EXPECT_GT(sum, 0u);
}

}  // namespace
}  // namespace weightfs
