#include "tools/tensor_stream.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

std::byte PatternByte(uint64_t offset) {
  return static_cast<std::byte>((offset * 2654435761U) >> 13);
}

// An object whose reads are answered by the test's hand, in any order.
class ManualObject final : public Object {
 public:
  // Which started read answers all that wait; the others wait.
  enum class Answers { kEach, kEighth, kFirstOnly };

  explicit ManualObject(uint64_t size) { info_.size = size; }

  const FileInfo& info() const override { return info_; }
  bool TryRead(uint64_t, std::span<std::byte>) override { return false; }
  ReadId StartRead(uint64_t offset, std::span<std::byte> out,
                   const ReadOptions&, Done done) override {
    EXPECT_LE(offset + out.size(), info_.size);
    const ReadId id = ++next_;
    started_.push_back({id, offset, out, std::move(done)});
    most_at_once_ = std::max(most_at_once_, started_.size());
    if (answers_ == Answers::kEach ||
        (answers_ == Answers::kEighth && next_ % 8 == 0) ||
        (answers_ == Answers::kFirstOnly && next_ == 1)) {
      AnswerNewestFirst();
    }
    return id;
  }
  void CancelRead(ReadId id) override {
    for (Read& read : started_) {
      if (read.id != id || !read.done) continue;
      auto done = std::exchange(read.done, nullptr);
      done(Error(Code::kCancelled, "cancelled"));
    }
  }
  uint64_t Prefetch(uint64_t, uint64_t length) override { return length; }
  std::string WaitsFor(ReadId) const override { return "a hand"; }
  double CachedFraction() const override { return 0; }

  void AnswerNewestFirst() {
    std::deque<Read> reads = std::exchange(started_, {});
    while (!reads.empty()) {
      Read read = std::move(reads.back());
      reads.pop_back();
      if (!read.done) continue;
      if (read.offset <= fail_at_ && fail_at_ - read.offset < read.out.size()) {
        read.done(Error(Code::kUnavailable, "broken"));
        continue;
      }
      for (size_t i = 0; i < read.out.size(); ++i) {
        read.out[i] = PatternByte(read.offset + i);
      }
      read.done({});
    }
  }

  struct Read {
    ReadId id;
    uint64_t offset;
    std::span<std::byte> out;
    Done done;
  };
  FileInfo info_;
  ReadId next_ = 0;
  std::deque<Read> started_;
  size_t most_at_once_ = 0;
  Answers answers_ = Answers::kEach;
  uint64_t fail_at_ = UINT64_MAX;
};

class TensorStreamTest : public ::testing::Test {
 protected:
  Result<> Stream(const VirtualFile& file) {
    const std::shared_ptr<Object> objects[] = {object_};
    return StreamVirtual(file, objects, options_,
                         [this](std::span<const std::byte> bytes) -> Result<> {
                           written_.insert(written_.end(), bytes.begin(),
                                           bytes.end());
                           if (written_.size() > fail_write_after_) {
                             return Error(Code::kNoSpace, "full");
                           }
                           return {};
                         });
  }

  static VirtualFile HeaderAndRange(const std::string& header, uint64_t offset,
                                    uint64_t length) {
    return *VirtualFile::Create(
        {Literal(header), SourceSegment{{0, offset, length}}});
  }

  void ExpectPattern(const std::string& header, uint64_t offset,
                     uint64_t length) {
    ASSERT_EQ(written_.size(), header.size() + length);
    for (size_t i = 0; i < header.size(); ++i) {
      ASSERT_EQ(written_[i], static_cast<std::byte>(header[i])) << i;
    }
    for (uint64_t i = 0; i < length; ++i) {
      ASSERT_EQ(written_[header.size() + i], PatternByte(offset + i)) << i;
    }
  }

  std::shared_ptr<ManualObject> object_ =
      std::make_shared<ManualObject>(1 << 20);
  StreamOptions options_{.window = 1000, .windows = 8};
  std::vector<std::byte> written_;
  size_t fail_write_after_ = SIZE_MAX;
};

TEST_F(TensorStreamTest, WritesInOrderWhateverOrderReadsEndIn) {
  object_->answers_ = ManualObject::Answers::kEighth;
  const VirtualFile file = HeaderAndRange("head", 17, 7996);
  ASSERT_OK(Stream(file));
  ExpectPattern("head", 17, 7996);
  EXPECT_EQ(object_->most_at_once_, 8u);
}

TEST_F(TensorStreamTest, ReusesItsWindows) {
  const VirtualFile file = HeaderAndRange("0123456789", 5, 123457);
  ASSERT_OK(Stream(file));
  ExpectPattern("0123456789", 5, 123457);
}

TEST_F(TensorStreamTest, WritesFilesOfAnySizeAroundAWindow) {
  for (const uint64_t length : {0, 1, 999, 1000, 1001, 7999, 8000, 8001}) {
    written_.clear();
    ASSERT_OK(Stream(HeaderAndRange("", 3, length)));
    ExpectPattern("", 3, length);
  }
}

TEST_F(TensorStreamTest, WritesLiteralsWithoutReading) {
  ASSERT_OK(Stream(*VirtualFile::Create({Literal(std::string(2500, 'x'))})));
  EXPECT_EQ(written_.size(), 2500u);
  EXPECT_EQ(object_->next_, 0u);
}

TEST_F(TensorStreamTest, StopsAtAReadThatFails) {
  object_->fail_at_ = 5500;
  EXPECT_THAT(Stream(HeaderAndRange("", 0, 100000)),
              HasCode(Code::kUnavailable));
  EXPECT_EQ(written_.size(), 5000u);
}

TEST_F(TensorStreamTest, CancelsWhatIsInFlightWhenTheOutputFails) {
  fail_write_after_ = 0;
  object_->answers_ = ManualObject::Answers::kFirstOnly;
  EXPECT_THAT(Stream(HeaderAndRange("", 0, 100000)), HasCode(Code::kNoSpace));
  EXPECT_EQ(written_.size(), 1000u);
  EXPECT_EQ(object_->started_.size(), 7u);
  EXPECT_TRUE(std::all_of(object_->started_.begin(), object_->started_.end(),
                          [](const auto& read) { return !read.done; }));
}

}  // namespace
}  // namespace weightfs
