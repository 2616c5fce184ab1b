// What every Origin promises (cache/origin.h), as a suite that each kind of
// origin runs. In one test file per kind:
//
//   class MyHost final : public OriginHost { … };
//   INSTANTIATE_TEST_SUITE_P(My, OriginContractTest,
//       ::testing::Values([]() -> std::unique_ptr<OriginHost> {
//         return std::make_unique<MyHost>();
//       }));
//
// Include this in that one file only: it defines tests.

#ifndef WEIGHTFS_TESTS_SUPPORT_ORIGIN_CONTRACT_H_
#define WEIGHTFS_TESTS_SUPPORT_ORIGIN_CONTRACT_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cache/origin.h"
#include "tests/support/collecting_sink.h"
#include "tests/support/matchers.h"
#include "tests/support/origin_fixture.h"

namespace weightfs {

TEST_P(OriginContractTest, ListsEveryFileOnceSortedWithItsSize) {
  auto snapshot = origin().List();
  ASSERT_OK(snapshot);
  std::vector<std::string> paths;
  for (const FileInfo& file : (*snapshot)->files) {
    paths.push_back(file.path);
    ASSERT_TRUE(files_.count(file.path)) << file.path;
    EXPECT_EQ(file.size, files_[file.path].size()) << file.path;
    EXPECT_FALSE(file.id.value.empty()) << file.path;
    EXPECT_EQ((*snapshot)->Find(file.path), &file);
  }
  EXPECT_EQ(paths.size(), files_.size());
  EXPECT_TRUE(std::is_sorted(paths.begin(), paths.end()));
  EXPECT_FALSE((*snapshot)->commit.empty());
  EXPECT_FALSE(origin().name().empty());
}

TEST_P(OriginContractTest, StaysBoundToOneSnapshot) {
  auto first = origin().List();
  ASSERT_OK(first);
  EXPECT_THAT(origin().List(), IsOkAndHolds(*first));
}

TEST_P(OriginContractTest, ListsAlikeInManyThreads) {
  std::vector<std::thread> threads;
  std::vector<Result<std::shared_ptr<const Snapshot>>> results(
      8, Error(Code::kCancelled, "not run"));
  for (auto& result : results) {
    threads.emplace_back([&] { result = origin().List(); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) {
    ASSERT_OK(result);
    EXPECT_EQ(*result, *results.front());
  }
}

TEST_P(OriginContractTest, StatTellsAMissingFile) {
  EXPECT_THAT(origin().Stat("nothing/here"), HasCode(Code::kNotFound));
  EXPECT_THAT(origin().Stat("sub"), HasCode(Code::kNotFound));
}

TEST_P(OriginContractTest, FetchesWholeFiles) {
  ASSERT_OK(origin().List());
  for (const auto& [path, content] : files_) {
    if (content.empty()) continue;
    auto bytes = FetchRange(origin(), File(path), 0, content.size());
    ASSERT_OK(bytes) << path;
    EXPECT_TRUE(*bytes == content) << path;
  }
}

TEST_P(OriginContractTest, FetchesExactlyTheRange) {
  const FileInfo file = File("model.safetensors");
  const std::string& content = files_[file.path];
  std::mt19937_64 random(11);
  for (int round = 0; round < 50; ++round) {
    const uint64_t offset = random() % content.size();
    const uint64_t length = 1 + random() % (content.size() - offset);
    auto bytes = FetchRange(origin(), file, offset, length);
    ASSERT_OK(bytes);
    ASSERT_TRUE(*bytes == content.substr(offset, length))
        << offset << " " << length;
  }
  EXPECT_THAT(FetchRange(origin(), file, content.size() - 1, 1),
              IsOkAndHolds(content.substr(content.size() - 1)));
}

TEST_P(OriginContractTest, FetchesManyRangesAtOnce) {
  const FileInfo file = File("model.safetensors");
  const std::string& content = files_[file.path];
  constexpr uint64_t kStep = 60'000;
  std::set<FetchId> ids;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint64_t offset = 0; offset < content.size(); offset += kStep) {
    sinks.push_back(std::make_shared<CollectingSink>());
    ids.insert(origin().StartFetch(
        file, offset, std::min(kStep, content.size() - offset), sinks.back()));
  }
  EXPECT_EQ(ids.size(), sinks.size());
  EXPECT_EQ(ids.count(0), 0u);
  std::string together;
  for (const auto& sink : sinks) {
    EXPECT_OK(sink->Wait());
    together += sink->bytes();
  }
  EXPECT_TRUE(together == content);
}

TEST_P(OriginContractTest, ASinkStopsItsFetch) {
  const FileInfo file = File("model.safetensors");
  auto sink = std::make_shared<CollectingSink>(1);
  origin().StartFetch(file, 0, file.size, sink);
  EXPECT_THAT(sink->Wait(), HasCode(Code::kCancelled));
  const std::string bytes = sink->bytes();
  EXPECT_TRUE(files_[file.path].starts_with(bytes));
}

TEST_P(OriginContractTest, CancelEndsAFetchOnce) {
  const FileInfo file = File("model.safetensors");
  for (int round = 0; round < 20; ++round) {
    auto sink = std::make_shared<CollectingSink>();
    const FetchId id = origin().StartFetch(file, 0, file.size, sink);
    origin().CancelFetch(id);
    origin().CancelFetch(id);
    const auto result = sink->Wait();
    if (result) {
      EXPECT_TRUE(sink->bytes() == files_[file.path]);
    } else {
      EXPECT_THAT(result, HasCode(Code::kCancelled));
    }
    origin().CancelFetch(id);
  }
  origin().CancelFetch(0);
  origin().CancelFetch(1'000'000);
}

// A caller may hold a lock that its sink takes.
TEST_P(OriginContractTest, NeverCallsTheSinkInsideACallOfTheOrigin) {
  class LockingSink final : public FetchSink {
   public:
    explicit LockingSink(Mutex& mutex) : mutex_(mutex) {}
    bool OnData(std::span<const std::byte> /*data*/) override {
      MutexLock lock(mutex_);
      return true;
    }
    void OnDone(Result<> /*result*/) override {
      MutexLock lock(mutex_);
      done = true;
      done.notify_all();
    }
    std::atomic<bool> done{false};

   private:
    Mutex& mutex_;
  };
  const FileInfo file = File("config.json");
  Mutex mutex;
  auto sink = std::make_shared<LockingSink>(mutex);
  {
    MutexLock lock(mutex);
    const FetchId id = origin().StartFetch(file, 0, file.size, sink);
    origin().CancelFetch(id);
  }
  sink->done.wait(false);
}

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_ORIGIN_CONTRACT_H_
