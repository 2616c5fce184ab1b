// Random operations on the cache, against a model that knows which granules
// must be there, may be there or cannot be; and threads on one object.

#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "tests/cache/cache_fixture.h"
#include "tests/cache/test_evictor.h"

namespace weightfs {
namespace {

constexpr uint64_t kG = kGranuleSize;
constexpr uint64_t kSize = 2 * kSlabSize + 3 * kG + 77;
constexpr uint64_t kGranules = kSize / kG + 1;
constexpr uint64_t kSlabs = 3;
constexpr uint64_t kSeed = 20240612;

uint64_t SlabOf(uint64_t granule) { return granule * kG / kSlabSize; }

// What the model knows of one granule. kMaybe: damage that the cache must find,
// or has found already.
enum class Known { kAbsent, kPresent, kMaybe };

// Two caches on one folder, as two processes have it, and the model.
class ModelTest : public ObjectCacheTest {
 protected:
  struct Process {
    FaultyDisk disk;
    std::unique_ptr<ObjectCache> cache;
    std::shared_ptr<CacheFile> file;
    std::vector<std::pair<uint64_t, SlabPin>> pins;  // slab and its pin
  };

  void SetUp() override {
    ObjectCacheTest::SetUp();
    cache_.reset();
    for (Process& process : processes_) Start(process);
    evictor_ = std::make_unique<TestEvictor>(
        folder(), ObjectPath(kEndpoint, Sha256Id()).value());
    for (uint64_t slab = 0; slab < kSlabs; ++slab) {
      // A few granules at both ends of each slab.
      for (uint64_t g = slab * 512; g < (slab + 1) * 512; ++g) {
        if ((g % 512 < 4 || g % 512 > 507) && g < kGranules) {
          truth_[g] = Pattern(g * kG, std::min(kG, kSize - g * kG));
          known_[g] = Known::kAbsent;
        }
      }
    }
    std::printf("seed %lu\n", kSeed);
  }
  void TearDown() override {
    evictor_.reset();
    for (Process& process : processes_) Stop(process);
    ObjectCacheTest::TearDown();
  }

  static void Stop(Process& process) {
    process.pins.clear();
    process.file.reset();
    process.cache.reset();
  }
  void Start(Process& process) {
    Stop(process);
    auto cache = ObjectCache::Open(folder(), {}, process.disk);
    ASSERT_OK(cache);
    process.cache = std::move(cache).value();
    Reopen(process);
  }
  void Reopen(Process& process) {
    process.pins.clear();
    process.file.reset();
    auto file = process.cache->OpenObject(kEndpoint, Sha256Id(), kSize);
    ASSERT_OK(file);
    process.file = std::move(file).value();
  }

  uint64_t Random(uint64_t below) { return random_() % below; }
  uint64_t RandomGranule() {
    auto it = truth_.begin();
    std::advance(it, static_cast<ptrdiff_t>(Random(truth_.size())));
    return it->first;
  }

  void DoRead(Process& process) {
    const uint64_t first = RandomGranule();
    uint64_t last = first;
    while (truth_.contains(last + 1) && Random(2) == 0) ++last;
    const uint64_t start = first * kG + Random(truth_[first].size());
    const uint64_t end = last * kG + Random(truth_[last].size()) + 1;
    if (start >= end) return;
    const auto pin = process.file->Pin(start, end - start);
    ASSERT_OK(pin);
    std::vector<std::byte> out(end - start);
    const bool at_once = process.file->TryRead(start, out);
    const auto result = at_once ? Result<>() : process.file->Read(start, out);
    bool surely_there = true;
    bool surely_not = false;
    for (uint64_t g = first; g <= last; ++g) {
      surely_there = surely_there && known_[g] == Known::kPresent;
      surely_not = surely_not || known_[g] == Known::kAbsent;
    }
    if (!result.has_value()) {
      ASSERT_THAT(result, HasCode(Code::kStale));
      ASSERT_FALSE(surely_there) << "bytes were lost";
      return;
    }
    ASSERT_FALSE(surely_not) << "read what was never there";
    for (uint64_t at = start; at < end;) {
      const uint64_t g = at / kG;
      const uint64_t stop = std::min((g + 1) * kG, end);
      ASSERT_EQ(std::memcmp(out.data() + (at - start),
                            truth_[g].data() + (at - g * kG), stop - at),
                0)
          << "WRONG BYTES in granule " << g;
      at = stop;
    }
    bytes_compared_ += end - start;
  }

  void DoPut(Process& process) {
    const uint64_t g = RandomGranule();
    const uint64_t fault = Random(12);
    FaultyDisk& disk = process.disk;
    if (fault == 0) disk.write_error = ENOSPC;
    if (fault == 1) disk.write_error = EIO;
    if (fault == 2) disk.tear_next_write = true;
    if (fault == 3) disk.short_writes = 1 + Random(kG);
    const auto result = process.file->Put(g, truth_[g]);
    disk.write_error = 0;
    disk.short_writes = 0;
    const bool torn = fault == 2 && !disk.tear_next_write.exchange(false);
    if (!result.has_value()) {
      ASSERT_LT(fault, 2u) << result.error().ToString();
      ASSERT_NE(known_[g], Known::kPresent) << "written though it was there";
      return;
    }
    known_[g] = torn ? Known::kMaybe : Known::kPresent;
  }

  void DoPin(Process& process) {
    if (process.pins.size() > 2 || (Random(2) == 0 && !process.pins.empty())) {
      process.pins.erase(process.pins.begin() +
                         static_cast<ptrdiff_t>(Random(process.pins.size())));
      return;
    }
    const uint64_t g = RandomGranule();
    auto pin = process.file->Pin(g * kG, 1);
    ASSERT_OK(pin);
    process.pins.emplace_back(SlabOf(g), std::move(*pin));
  }

  void DoEvict() {
    const uint64_t slab = Random(kSlabs);
    bool pinned = false;
    for (const Process& process : processes_) {
      for (const auto& pin : process.pins) pinned = pinned || pin.first == slab;
    }
    ASSERT_EQ(evictor_->Evict(slab), !pinned);
    if (pinned) return;
    ++evicted_;
    for (auto& [g, known] : known_) {
      if (SlabOf(g) == slab) known = Known::kAbsent;
    }
  }

  // Bit rot is found by whoever hashes after it, so all do.
  void DoRot() {
    const uint64_t g = RandomGranule();
    if (known_[g] == Known::kAbsent) return;
    for (Process& process : processes_) Stop(process);
    FlipBit(DataPath(), g * kG + Random(truth_[g].size()));
    known_[g] = Known::kMaybe;
    for (Process& process : processes_) Start(process);
  }

  // A write-back that failed: all who have the file open are told.
  void DoLoseWrites() {
    const uint64_t g = RandomGranule();
    if (known_[g] == Known::kAbsent) return;
    FlipBit(DataPath(), g * kG + Random(truth_[g].size()));
    known_[g] = Known::kMaybe;
    for (Process& process : processes_) process.disk.lost_writes = EIO;
  }

  // The object is damaged or removed behind everybody's back.
  void DoRuin() {
    const uint64_t kind = Random(4);
    if (kind == 0) std::filesystem::resize_file(MetaPath(), Random(9000));
    if (kind == 1) std::filesystem::resize_file(DataPath(), Random(kSize));
    if (kind == 2) FlipBit(MetaPath(), Random(128));
    if (kind == 3) std::filesystem::remove_all(ObjectFolder());
    // A header that is damaged is found by those who open it again.
    if (kind >= 2) {
      for (Process& process : processes_) process.file.reset();
    }
    for (auto& [g, known] : known_) known = Known::kMaybe;
    for (int i = 0; i < 20 && kind < 2; ++i) DoRead(processes_[Random(2)]);
    for (Process& process : processes_) Reopen(process);
    for (auto& [g, known] : known_) known = Known::kAbsent;
    evictor_ = std::make_unique<TestEvictor>(
        folder(), ObjectPath(kEndpoint, Sha256Id()).value());
    ASSERT_TRUE(evictor_->valid());
  }

  void DoOne() {
    Process& process = processes_[Random(2)];
    const uint64_t what = Random(1000);
    if (what < 550) return DoRead(process);
    if (what < 880) return DoPut(process);
    if (what < 940) return DoPin(process);
    if (what < 990) return DoEvict();
    if (what < 993) return DoLoseWrites();
    if (what < 995) return Start(process);
    if (what < 998) return Reopen(process);
    if (what < 999) return DoRot();
    if (Random(4) == 0) DoRuin();
  }

  std::mt19937_64 random_{kSeed};
  std::array<Process, 2> processes_;
  std::unique_ptr<TestEvictor> evictor_;
  std::map<uint64_t, std::vector<std::byte>> truth_;
  std::map<uint64_t, Known> known_;
  uint64_t bytes_compared_ = 0;
  uint64_t evicted_ = 0;
};

TEST_F(ModelTest, RandomOperationsAgreeWithTheModel) {
  for (int i = 0; i < 100'000; ++i) {
    DoOne();
    if (HasFatalFailure()) FAIL() << "at operation " << i;
  }
  std::printf("%lu bytes compared, %lu slabs evicted\n", bytes_compared_,
              evicted_);
}

// Threads that read, write, pin and evict one object at once. Run it under the
// thread sanitizer.
TEST_F(ObjectCacheTest, ThreadsShareOneObject) {
  std::printf("seed %lu\n", kSeed);
  constexpr uint64_t kThreads = 6;
  OpenFile(kSize);
  std::atomic<uint64_t> compared = 0;
  std::atomic<bool> stop = false;
  {
    std::vector<std::jthread> threads;
    for (uint64_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(kSeed + t);
        for (int n = 0; n < 1500; ++n) {
          const uint64_t g = 505 + random() % 12;
          const uint64_t offset = g * kG + random() % kG;
          std::vector<std::byte> out(1 + random() % (2 * kG));
          const auto pin = file_->Pin(offset, out.size());
          if (!pin.has_value()) continue;
          if (file_->TryRead(offset, out) ||
              file_->Read(offset, out).has_value()) {
            ASSERT_EQ(out, Pattern(offset, out.size()));
            ++compared;
          } else {
            static_cast<void>(PutPattern(*file_, g));
          }
          if (n % 100 == 0) static_cast<void>(file_->CachedFraction());
        }
      });
    }
    std::jthread evictor([&] {
      TestEvictor evict(folder(), ObjectPath(kEndpoint, Sha256Id()).value());
      for (uint64_t slab = 0; !stop; slab = (slab + 1) % kSlabs) {
        evict.Evict(slab);
        std::this_thread::yield();
      }
    });
    for (std::jthread& thread : threads) thread.join();
    stop = true;
  }
  EXPECT_GT(compared, 0u);
  std::printf("%lu reads compared\n", compared.load());
}

TEST_F(ObjectCacheTest, ThreadsOpenObjectsAtOnce) {
  std::vector<std::jthread> threads;
  std::array<std::shared_ptr<CacheFile>, 8> files;
  for (size_t t = 0; t < files.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < 20; ++n) {
        const char digit = "0123456789abcdef"[n % 16];
        auto file = cache_->OpenObject(kEndpoint, Sha256Id(digit), 3 * kG);
        ASSERT_OK(file);
        static_cast<void>(PutPattern(**file, t % 3));
      }
      auto file = cache_->OpenObject(kEndpoint, Sha256Id('f'), 3 * kG);
      ASSERT_OK(file);
      files[t] = std::move(file).value();
    });
  }
  for (std::jthread& thread : threads) thread.join();
  for (const auto& file : files) EXPECT_EQ(file, files[0]);
  EXPECT_EQ(files[0]->CachedFraction(), 1);
  EXPECT_EQ(CountBad(), 0);
}

}  // namespace
}  // namespace weightfs
