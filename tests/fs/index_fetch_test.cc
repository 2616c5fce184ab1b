// How a weight set's headers are fetched.

#include <memory>
#include <string>

#include "formats/safetensors.h"
#include "fs/repo.h"
#include "tests/fs/fuse_fixture.h"
#include "tests/fs/memory_origin.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

// Headers that the first read of each shard does not cover are fetched at once,
// not one after the other.
TEST(IndexFetchTest, TheRestsOfLongHeadersAreFetchedTogether) {
  constexpr size_t kShards = 5;
  MemoryOrigin origin;
  origin.SetNamespace("memory");
  const std::string padding(kSafetensorsProbe + 100, ' ');
  for (size_t i = 1; i <= kShards; ++i) {
    const std::string number = std::to_string(i);
    const std::string header =
        R"({"t)" + number +
        R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})" + padding;
    origin.Add("model-0000" + number + "-of-00005.safetensors",
               Model(header, 4));
  }
  origin.Gather(kSafetensorsProbe, kShards);
  OneFileCache cache;
  TimerQueue timers("timers");
  WorkerPool pool("pool", 2);
  WorkerPool indexers("index", 2);
  const auto fetcher = Fetcher::Create(origin, timers, pool, {});
  auto repo = Repo::Open({&origin, fetcher.get(), &cache, &indexers}, {});
  ASSERT_OK(repo);
  const auto index = (*repo)->WaitForIndex(0);
  ASSERT_OK(index);
  EXPECT_EQ((*index)->index.tensors().size(), kShards);
  fetcher->Stop();
  indexers.Stop();
  pool.Stop();
  timers.Stop();
}

}  // namespace
}  // namespace weightfs
