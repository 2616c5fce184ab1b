// Two processes fetch into one small cache folder and evict from it as hard as
// they can, and pass descriptors of what is whole to readers that hash nothing:
// one reads its descriptor, the other maps it. All of them are killed at random
// points. Every byte that anybody gets is compared.
//
// WEIGHTFS_SEED repeats a run's choices (who reads what, who is killed, after
// how many reads), WEIGHTFS_ROUNDS makes it longer.

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <random>

#include "cache/content_hash.h"
#include "cache/fetcher.h"
#include "tests/cache/cache_fixture.h"
#include "tests/cache/child_exit.h"
#include "tests/support/fake_origin.h"
#include "tests/support/sanitized.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

constexpr uint64_t kLimit = uint64_t{6} << 20;  // bytes of the cache folder
constexpr size_t kDaemons = 2;
constexpr size_t kReaders = 2;
#ifdef WEIGHTFS_SANITIZED
constexpr uint64_t kRounds = 30;
#else
constexpr uint64_t kRounds = 200;
#endif

using Random = std::mt19937_64;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

struct Model {
  FileInfo info;
  std::vector<std::byte> truth;
};

// What the processes of a round tell the test, in memory that they share.
struct Board {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0};  // of daemons
  std::atomic<uint64_t> compared_fetched{0};
  std::atomic<uint64_t> compared_passed{0};
  std::atomic<uint64_t> compared_mapped{0};
  std::atomic<uint64_t> passed{0};
  std::atomic<uint64_t> evicted_bytes{0};
};

// A pair of connected sockets: descriptors go from daemons to one reader.
class Channel {
 public:
  Channel() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) !=
        0) {
      std::abort();
    }
    read_ = UniqueFd(ends[0]);
    write_ = UniqueFd(ends[1]);
  }
  int reading() const { return read_.get(); }
  void CloseReading() { read_ = UniqueFd(); }
  void CloseWriting() { write_ = UniqueFd(); }

  // Without waiting; a reader that is behind gets the next one.
  bool Send(uint8_t model, int fd) const {
    Message message(model);
    cmsghdr* header = CMSG_FIRSTHDR(&message.header);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return ::sendmsg(write_.get(), &message.header,
                     MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
  }
  // Nothing: no writer is left. Waits for `wait_ms` at most; an invalid
  // descriptor if none came.
  std::optional<std::pair<size_t, UniqueFd>> Receive(int wait_ms) const {
    struct pollfd ready {
      read_.get(), POLLIN, 0
    };
    if (::poll(&ready, 1, wait_ms) != 1)
      return std::pair(size_t{0}, UniqueFd());
    Message message(0);
    if (::recvmsg(read_.get(), &message.header, MSG_CMSG_CLOEXEC) != 1) {
      return std::nullopt;
    }
    int fd = -1;
    const cmsghdr* header = CMSG_FIRSTHDR(&message.header);
    if (header != nullptr) std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    return std::pair(size_t{message.model}, UniqueFd(fd));
  }

 private:
  // One byte and room for one descriptor.
  struct Message {
    explicit Message(uint8_t number) : model(number) {
      header.msg_iov = &data;
      header.msg_iovlen = 1;
      header.msg_control = control.data();
      header.msg_controllen = control.size();
    }
    Message(const Message&) = delete;
    Message& operator=(const Message&) = delete;

    uint8_t model;
    struct iovec data {
      &model, sizeof(model)
    };
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    struct msghdr header {};
  };

  UniqueFd read_;
  UniqueFd write_;
};

class SharedCacheTest : public ::testing::Test {
 protected:
  SharedCacheTest() : seed_(FromEnvironment("WEIGHTFS_SEED", 20241124)) {
    for (uint64_t i = 0; i < 6; ++i) {
      const uint64_t size = (7 + 2 * i) * kG + 1234 * i + 1;
      Model model;
      const std::string path = fmt::format("model-{}.bin", i);
      model.truth = FakeBytes(path, 0, size);
      ContentHash hash(ContentId::Kind::kSha256, size);
      hash.Add(model.truth);
      model.info = {path, size, {ContentId::Kind::kSha256, hash.Finish()}};
      models_.push_back(std::move(model));
    }
    void* memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    board_ = new (memory) Board;
  }
  ~SharedCacheTest() override { ::munmap(board_, sizeof(Board)); }

  std::string folder() const { return temp_.path() + "/cache"; }

  // --- In the children ---

  // Reads models through a fetcher until it is told to stop, and passes on
  // those that it can seal.
  int Daemon(uint64_t seed) {
    Random random(seed);
    auto cache = ObjectCache::Open(folder(), {.max_bytes = kLimit});
    if (!cache.has_value()) return kNoCache;
    FakeOrigin origin;
    TimerQueue timers("timers");
    WorkerPool pool("pool", 8);
    origin.Play(4, [](const auto&) { return FakeOrigin::Plot{}; });
    const auto fetcher = Fetcher::Create(origin, timers, pool, {});
    int result = kFine;
    uint64_t evicted = 0;
    while (result == kFine && !board_->stop) {
      const size_t n = random() % models_.size();
      result = ReadAndPass(**cache, *fetcher, n, random);
      ++board_->reads;
      const uint64_t now = (*cache)->stats().evicted_bytes;
      board_->evicted_bytes += now - std::exchange(evicted, now);
    }
    fetcher->Stop();
    pool.Stop();
    if ((*cache)->stats().bad_granules > 0) return kWrongBytes;
    return result;
  }

  int ReadAndPass(ObjectCache& cache, Fetcher& fetcher, size_t n,
                  Random& random) {
    const Model& model = models_[n];
    auto file = cache.OpenObject(kEndpoint, model.info.id, model.info.size);
    if (!file.has_value()) {
      return file.error().code() == Code::kNoSpace ? kFine : kNoObject;
    }
    const auto object = fetcher.OpenObject(model.info, *file);
    const uint64_t window = (1 + random() % 8) * kG + random() % 1000;
    for (uint64_t at = 0; at < model.info.size && !board_->stop; at += window) {
      if (random() % 4 == 0) object->Prefetch(at, 4 * window);
      const int result =
          ReadOnce(*object, model, at, std::min(window, model.info.size - at));
      if (result != kFine) return result;
    }
    auto shared = (*file)->Share();
    if (!shared.has_value()) {
      // Some of it was evicted already, or the disk is full.
      return shared.error().code() == Code::kCorrupt ? kNoShare : kFine;
    }
    const Channel& channel = channels_[random() % kReaders];
    if (channel.Send(static_cast<uint8_t>(n), shared->get())) ++board_->passed;
    return kFine;
  }

  int ReadOnce(Object& object, const Model& model, uint64_t at,
               uint64_t length) {
    std::vector<std::byte> out(length);
    if (!object.TryRead(at, out)) {
      std::promise<Result<>> promise;
      object.StartRead(
          at, out, {Clock::System().Now() + std::chrono::seconds(60)},
          [&](Result<> result) { promise.set_value(std::move(result)); });
      if (!promise.get_future().get().has_value()) return kNoRead;
    }
    board_->compared_fetched += length;
    return std::memcmp(out.data(), model.truth.data() + at, length) == 0
               ? kFine
               : kWrongBytes;
  }

  // Compares what it was passed, again and again, until something newer comes,
  // and a last time when nobody is left who could pass anything.
  int ReadPassed(const Channel& channel) {
    UniqueFd held;
    size_t n = 0;
    std::vector<std::byte> out;
    for (bool last = false;;) {
      if (held.valid()) {
        const auto& truth = models_[n].truth;
        out.assign(truth.size(), std::byte{});
        uint64_t at = 0;
        while (at < out.size()) {
          const ssize_t got = ::pread(held.get(), out.data() + at,
                                      out.size() - at, static_cast<off_t>(at));
          if (got <= 0) return kNoRead;
          at += static_cast<uint64_t>(got);
        }
        board_->compared_passed += at;
        if (out != truth) return kWrongBytes;
      }
      if (last) return kFine;
      auto next = channel.Receive(2);
      last = !next;
      if (!next || !next->second.valid()) continue;
      n = next->first;
      held = std::move(next->second);
    }
  }

  // The same through a mapping, which holds the pin alone.
  int ReadMapped(const Channel& channel) {
    void* mapping = MAP_FAILED;
    size_t n = 0;
    for (bool last = false;;) {
      if (mapping != MAP_FAILED) {
        const auto& truth = models_[n].truth;
        board_->compared_mapped += truth.size();
        if (std::memcmp(mapping, truth.data(), truth.size()) != 0) {
          return kWrongBytes;
        }
      }
      if (last) return kFine;
      auto next = channel.Receive(2);
      last = !next;
      if (!next || !next->second.valid()) continue;
      if (mapping != MAP_FAILED) ::munmap(mapping, models_[n].truth.size());
      n = next->first;
      mapping = ::mmap(nullptr, models_[n].truth.size(), PROT_READ, MAP_SHARED,
                       next->second.get(), 0);
      if (mapping == MAP_FAILED) return kNoMapping;
    }
  }

  // --- In the test ---

  std::unique_ptr<Child> StartDaemon(uint64_t seed) {
    return std::make_unique<Child>([this, seed] {
      for (Channel& channel : channels_) channel.CloseReading();
      return Daemon(seed);
    });
  }
  std::unique_ptr<Child> StartReader(size_t i) {
    return std::make_unique<Child>([this, i] {
      for (Channel& channel : channels_) channel.CloseWriting();
      return i == 0 ? ReadPassed(channels_[i]) : ReadMapped(channels_[i]);
    });
  }
  // Until the daemons have read so many more models.
  void AwaitReads(uint64_t count) const {
    const uint64_t goal = board_->reads + count;
    const auto until = Clock::System().Now() + std::chrono::seconds(60);
    while (board_->reads < goal) {
      ASSERT_LT(Clock::System().Now(), until) << "nobody reads any more";
      ::usleep(200);
    }
  }
  void Kill(std::unique_ptr<Child>& child) {
    const int ended = child->Kill();
    ++kills_;
    ASSERT_EQ(ended, -SIGKILL) << "it had ended, with " << ended;
    child.reset();
  }

  void Round(Random& random) {
    board_->stop = false;
    channels_ = {};
    std::array<std::unique_ptr<Child>, kReaders> readers;
    std::array<std::unique_ptr<Child>, kDaemons> daemons;
    for (size_t i = 0; i < kReaders; ++i) readers[i] = StartReader(i);
    for (auto& channel : channels_) channel.CloseReading();
    for (auto& daemon : daemons) daemon = StartDaemon(random());
    for (int kill = 0; kill < 2; ++kill) {
      AwaitReads(1 + random() % 4);
      const size_t victim = random() % kDaemons;
      if (!daemons[victim]) continue;
      Kill(daemons[victim]);
      if (random() % 2 == 0) daemons[victim] = StartDaemon(random());
      if (HasFatalFailure()) return;
      // One that lives evicts what the dead one passed on, if it can.
      if (daemons[0] || daemons[1]) AwaitReads(1 + random() % 4);
      if (random() % 8 == 0 && readers[kill]) Kill(readers[kill]);
      if (HasFatalFailure()) return;
      if (!daemons[0] && !daemons[1]) break;
    }
    board_->stop = true;
    for (auto& channel : channels_) channel.CloseWriting();
    for (auto& daemon : daemons) {
      if (!daemon) continue;
      ASSERT_EQ(daemon->Wait(), kFine);
    }
    for (auto& reader : readers) {
      if (!reader) continue;
      ASSERT_EQ(reader->Wait(), kFine);
    }
  }

  const uint64_t seed_;
  TempFolder temp_;
  std::vector<Model> models_;
  Board* board_ = nullptr;
  std::array<Channel, kReaders> channels_;
  uint64_t kills_ = 0;
};

TEST_F(SharedCacheTest, NobodyGetsAWrongByteWhileProcessesDieAndEvict) {
  const uint64_t rounds = FromEnvironment("WEIGHTFS_ROUNDS", kRounds);
  std::printf("WEIGHTFS_SEED=%lu\n", seed_);
  Random random(seed_);
  for (uint64_t round = 0; round < rounds; ++round) {
    Round(random);
    ASSERT_FALSE(HasFailure()) << "round " << round << " of seed " << seed_;
  }
  const Board& board = *board_;
  std::printf(
      "%lu rounds, %lu kills, %lu reads of whole models, %lu descriptors "
      "passed; bytes compared: %lu fetched or cached, %lu by descriptor, %lu "
      "by "
      "mapping; %lu bytes evicted\n",
      rounds, kills_, board.reads.load(), board.passed.load(),
      board.compared_fetched.load(), board.compared_passed.load(),
      board.compared_mapped.load(), board.evicted_bytes.load());
  // It was about something.
  EXPECT_GT(kills_, rounds);
  EXPECT_GT(board.passed, rounds / 2);
  EXPECT_GT(board.evicted_bytes, rounds * kLimit / 8);
  EXPECT_GT(board.compared_passed, 0);
  EXPECT_GT(board.compared_mapped, 0);
}

}  // namespace
}  // namespace weightfs
