// Random reads, cancels, deadlines and prefetch by many threads, against an
// origin and a disk that fail at random. Whatever happens, a read ends once,
// and OK means the right bytes.

#include <cstdlib>
#include <future>
#include <random>
#include <thread>

#include "cache/fetcher.h"
#include "cache/object_cache.h"
#include "tests/cache/cache_fixture.h"
#include "tests/support/fake_cache_file.h"
#include "tests/support/fake_origin.h"

namespace weightfs {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kThreads = 16;

class FetcherStressTest : public ::testing::Test {
 protected:
  using Random = std::mt19937_64;

  struct File {
    std::shared_ptr<Object> object;
    std::vector<std::byte> truth;
  };
  struct Counts {
    std::atomic<uint64_t> right{0};
    std::atomic<uint64_t> cancelled{0};
    std::atomic<uint64_t> late{0};
  };

  FetcherStressTest() {
    const char* text = std::getenv("WEIGHTFS_SEED");
    seed_ = text ? std::strtoull(text, nullptr, 10) : 20240607;
    std::cout << "WEIGHTFS_SEED=" << seed_ << "\n";
    FetcherOptions options;
    options.connections = 8;
    options.max_request = 4 * kGranuleSize;
    options.min_split = kGranuleSize;
    options.first_backoff = milliseconds(1);
    options.max_backoff = milliseconds(3);
    options.max_prefetch_bytes = 8 * kGranuleSize;
    options.max_unwritten_bytes = 6 * kGranuleSize;
    options.disk_reads = 2;
    options.disk_writes = 1;
    options.disk_patience = milliseconds(2);
    options.seed = seed_;
    fetcher_ = Fetcher::Create(origin_, timers_, pool_, options);
    origin_.Play(
        6, [this](const FakeOrigin::Start& start) { return MakePlot(start); });
  }

  // One fetch in four goes wrong.
  FakeOrigin::Plot MakePlot(const FakeOrigin::Start& start) const {
    Random random(seed_ ^ (start.id * 0x9e3779b97f4a7c15ULL));
    FakeOrigin::Plot plot;
    plot.chunk = 1 + random() % (48 * 1024);
    const Error reset(Code::kUnavailable, "connection reset");
    switch (random() % 24) {
      case 0:
      case 1:
      case 2:
        plot.give = random() % start.length;
        plot.result = reset;
        break;
      case 3:
        plot.give = random() % start.length;  // and "OK"
        break;
      case 4:
        plot.give = start.length + 1 + random() % 1000;
        break;
      case 5:
        plot.give = 0;
        plot.result = Error(Code::kUnavailable, "HTTP 429")
                          .WithRetryAfter(milliseconds(1));
        break;
      default:
        break;
    }
    return plot;
  }

  void AddFile(const std::string& path, uint64_t size,
               std::shared_ptr<CacheFile> cache) {
    const FileInfo info = origin_.AddFile(path, size);
    files_.push_back({fetcher_->OpenObject(info, std::move(cache)),
                      FakeBytes(path, 0, size)});
  }
  void AddFakeCached(const std::string& path, uint64_t size) {
    auto cache = std::make_shared<FakeCacheFile>(size);
    auto fault = [this](int most) {
      return [this, most](uint64_t granule) -> Result<> {
        const uint64_t n = ++disk_calls_ + granule * 31 + seed_;
        switch (n * 0x9e3779b97f4a7c15ULL >> 58) {
          case 0:
            return Error(Code::kIo, "EIO");
          case 1:
            return Error(most > 0 ? Code::kNoSpace : Code::kStale, "no");
          case 2:
            std::this_thread::sleep_for(milliseconds(3));  // a slow disk
            return {};
          default:
            return {};
        }
      };
    };
    cache->OnRead(fault(0));
    cache->OnPut(fault(1));
    fake_caches_.push_back(cache);
    AddFile(path, size, cache);
  }

  void ReadOnce(Random& random) {
    const File& file = files_[random() % files_.size()];
    const uint64_t size = file.truth.size();
    const uint64_t offset = random() % size;
    const uint64_t most = random() % 8 == 0 ? 700'000 : 20'000;
    const uint64_t length = std::min(1 + random() % most, size - offset);
    if (random() % 16 == 0 && !fake_caches_.empty()) {
      fake_caches_[random() % fake_caches_.size()]->Spoil(random() % 16);
    }
    if (random() % 16 == 0) {
      file.object->Prefetch(offset, std::min<uint64_t>(500'000, size - offset));
    }
    auto out = std::make_unique<std::byte[]>(length);
    const bool hurried = random() % 32 == 0;
    ReadOptions options;
    if (hurried) {
      options.deadline = Clock::System().Now() + microseconds(random() % 3'000);
    }
    auto promise = std::make_shared<std::promise<Result<>>>();
    auto end = promise->get_future();
    const ReadId id = file.object->StartRead(
        offset, {out.get(), length}, options,
        [promise](Result<> result) { promise->set_value(std::move(result)); });
    const bool cancel = random() % 8 == 0;
    if (cancel) {
      for (uint64_t spin = random() % 300; spin > 0; --spin) {
        std::this_thread::yield();
      }
      file.object->CancelRead(id);
    }
    const Result<> result = end.get();
    Check(file, offset, {out.get(), length}, result, cancel, hurried);
    out.reset();  // a late write is use after free
    if (random() % 4 == 0) file.object->CancelRead(id);
  }

  void Check(const File& file, uint64_t offset, std::span<const std::byte> out,
             const Result<>& result, bool cancel, bool hurried) {
    if (result.has_value()) {
      ASSERT_TRUE(std::equal(out.begin(), out.end(),
                             file.truth.begin() + static_cast<long>(offset)))
          << file.object->info().path << " at " << offset << "+" << out.size();
      ++counts_.right;
    } else if (result.error().code() == Code::kCancelled) {
      ASSERT_TRUE(cancel || stopped_) << result.error().ToString();
      ++counts_.cancelled;
    } else {
      ASSERT_TRUE(hurried && result.error().code() == Code::kUnavailable)
          << result.error().ToString();
      ++counts_.late;
    }
  }

  void Run(int reads_per_thread) {
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([this, t, reads_per_thread] {
        Random random(seed_ + t);
        for (int i = 0; i < reads_per_thread && !HasFatalFailure(); ++i) {
          ReadOnce(random);
        }
      });
    }
    for (auto& thread : threads) thread.join();
    const FetcherStats stats = fetcher_->stats();
    std::cout << counts_.right << " right, " << counts_.cancelled
              << " cancelled, " << counts_.late << " late; " << stats.fetches
              << " fetches, " << stats.retries << " retries, "
              << stats.cache_read_failures << " cache read failures\n";
  }

  uint64_t seed_ = 0;
  std::atomic<uint64_t> disk_calls_{0};
  std::atomic<bool> stopped_{false};
  Counts counts_;
  FakeOrigin origin_;
  TimerQueue timers_{"timers"};
  WorkerPool pool_{"pool", 6};
  std::vector<std::shared_ptr<FakeCacheFile>> fake_caches_;
  std::unique_ptr<Fetcher> fetcher_;
  std::vector<File> files_;
};

TEST_F(FetcherStressTest, RightBytesOverAFaultyOriginAndDisk) {
  AddFakeCached("a.bin", 16 * kGranuleSize + 12345);
  AddFakeCached("b.bin", 9 * kGranuleSize);
  AddFile("direct.bin", 700'001, nullptr);
  Run(1000);
  EXPECT_GT(counts_.right, kThreads * 600u);
  EXPECT_GT(counts_.cancelled, 0u);
  EXPECT_GT(fetcher_->stats().retries, 0u);
  EXPECT_GT(fetcher_->stats().cache_read_failures, 0u);
}

TEST_F(FetcherStressTest, RightBytesOverARealCache) {
  const TempFolder temp;
  auto cache = ObjectCache::Open(temp.path() + "/cache");
  ASSERT_OK(cache);
  for (const std::string path : {"a.bin", "b.bin", "c.bin"}) {
    const uint64_t size = 120 * kGranuleSize + path[0];
    auto file = (*cache)->OpenObject(
        kEndpoint, {ContentId::Kind::kGit, std::string(40, path[0])}, size);
    ASSERT_OK(file);
    AddFile(path, size, std::move(file).value());
  }
  Run(1000);
  EXPECT_GT(counts_.right, kThreads * 600u);
  EXPECT_EQ((*cache)->stats().bad_granules, 0u);
  fetcher_->Stop();
  files_.clear();
  fetcher_.reset();
}

TEST_F(FetcherStressTest, StopInTheMiddleLosesNoRead) {
  AddFakeCached("a.bin", 16 * kGranuleSize + 12345);
  AddFile("direct.bin", 700'001, nullptr);
  std::thread stopper([this] {
    origin_.WaitForStarts(40);
    stopped_ = true;
    fetcher_->Stop();
  });
  Run(300);
  stopper.join();
  EXPECT_GT(counts_.cancelled, 0u);
}

}  // namespace
}  // namespace weightfs
