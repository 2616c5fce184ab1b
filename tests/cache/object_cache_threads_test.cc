// Threads on one object, and threads that open objects. To be run under the
// thread sanitizer.

#include <cstdio>
#include <random>
#include <thread>

#include "tests/cache/cache_fixture.h"
#include "tests/cache/test_evictor.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

constexpr uint64_t kThreeSlabs = 2 * kSlabSize + 3 * kG + 77;
constexpr uint64_t kThreeSlabsCount = 3;
constexpr uint64_t kThreadsSeed = 20240612;

TEST_F(ObjectCacheTest, ThreadsShareOneObject) {
  std::printf("seed %lu\n", kThreadsSeed);
  constexpr uint64_t kSharers = 6;
  OpenFile(kThreeSlabs);
  std::atomic<uint64_t> compared = 0;
  std::atomic<bool> stop = false;
  {
    std::vector<std::jthread> threads;
    for (uint64_t t = 0; t < kSharers; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(kThreadsSeed + t);
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
      for (uint64_t slab = 0; !stop; slab = (slab + 1) % kThreeSlabsCount) {
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
