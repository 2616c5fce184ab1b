// One sequence of everything that changes a cache folder, by a process that is
// killed before its first change of the disk, its second, and so on to the
// last; and at each of these places the power is cut in several ways. Whatever
// is found after: no wrong byte; what was published and not evicted is there
// after a kill, and after a power cut what the disk holds whole; all can be
// fetched again.

#include <sys/mman.h>

#include <atomic>
#include <cstdio>

#include "cache/slab_evictor.h"
#include "tests/cache/cache_fixture.h"
#include "tests/cache/cache_model.h"
#include "tests/support/crash_tracer.h"

namespace weightfs {
namespace {

// In memory, if that can be: where syncs cost nothing, since they are noted.
std::string Base() {
  return ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : ::testing::TempDir();
}

// How far the child came, told through shared memory. In order.
enum Step : int {
  kNothing,
  kPut,  // and three more, after each granule
  kPromoted = kPut + 4,
  kShared,
  kEvicting,
  kEvicted,
  kPutAgain,  // as kPut
  kSharedAgain = kPutAgain + 4,
  kLiarPoisoned,
  kLiarMadeAnew,
  kLiarRemoved,
};

class CrashTest : public ObjectCacheTest {
 protected:
  CrashTest() : object_(2 * kGranuleSize + 4321, 1), liar_(5000, 2) {
    whole_ = object_.TakeRightId();
    void* mapped = ::mmap(nullptr, sizeof(*step_), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    step_ = new (mapped) std::atomic<int>(0);
  }
  ~CrashTest() override { ::munmap(step_, sizeof(*step_)); }
  void SetUp() override {}  // the child makes the folder

  std::string folder() const { return base_.path() + "/cache"; }

  std::string ObjectIn(const std::string& cache) const {
    const std::string verified = cache + "/" + VerifiedPath(object_.id);
    return std::filesystem::exists(verified)
               ? verified
               : cache + "/" + ObjectPath(kEndpoint, object_.id).value();
  }

  // In the child. An exit status that says where it went wrong; 0: nowhere.
  int Sequence() {
    auto cache = ObjectCache::Open(folder());
    if (!cache.has_value()) return 10;
    auto file = (*cache)->OpenObject(kEndpoint, object_.id, object_.size);
    if (!file.has_value()) return 11;
    if (!PutAll(**file, object_, kPut)) return 12;
    const std::vector<uint32_t> generations = {(*file)->Generation(0)};
    if (!(*file)->Promote(generations).has_value()) return 13;
    *step_ = kPromoted;
    if (!(*file)->Share().has_value()) return 14;
    *step_ = kShared;
    *step_ = kEvicting;
    if (!Evict()) return 15;
    *step_ = kEvicted;
    if (!PutAll(**file, object_, kPutAgain)) return 16;
    if (!(*file)->Share().has_value()) return 17;
    *step_ = kSharedAgain;
    return Lie(**cache);
  }
  bool PutAll(CacheFile& file, const Modelled& object, int step) {
    for (const auto& [granule, bytes] : object.truth) {
      if (!file.Put(granule, bytes).has_value()) return false;
      *step_ = step + static_cast<int>(granule) + 1;
    }
    return true;
  }
  bool Evict() {
    auto plain = CacheFolder::OpenPlain(folder());
    auto evictor = SlabEvictor::Open(**plain, CacheDisk::System(),
                                     VerifiedPath(object_.id));
    if (!evictor.has_value()) return false;
    const bool evicted = (*evictor)->Evict(0).has_value();
    (*evictor)->Demote();
    return evicted;
  }
  // An object whose bytes are not those of its id: given up, made anew,
  // removed.
  int Lie(ObjectCache& cache) {
    for (const int step : {kLiarPoisoned, kLiarMadeAnew}) {
      auto file = cache.OpenObject(kEndpoint, liar_.id, liar_.size);
      if (!file.has_value()) return 18;
      for (const auto& [granule, bytes] : liar_.truth) {
        if (!(*file)->Put(granule, bytes).has_value()) return 19;
      }
      if (step == kLiarPoisoned) (*file)->Poison();
      *step_ = step;
    }
    auto plain = CacheFolder::OpenPlain(folder());
    if (!RemoveUnusedObject(**plain, ObjectPath(kEndpoint, liar_.id).value())) {
      return 20;
    }
    *step_ = kLiarRemoved;
    return 0;
  }

  // What must be there when the child was killed after `step`.
  bool MustHave(uint64_t granule, int step) const {
    const int put = static_cast<int>(granule) + 1;
    return (step >= kPut + put && step < kEvicting) || step >= kPutAgain + put;
  }

  // Opens the cache as the next process does. `found`: what must be there.
  void Check(const std::string& folder, const Modelled& found) {
    auto cache = ObjectCache::Open(folder);
    ASSERT_OK(cache);
    CheckMirror(**cache, found);
    auto file = (*cache)->OpenObject(kEndpoint, found.id, found.size);
    ASSERT_OK(file);
    for (const auto& [granule, right] : found.truth) {
      const auto bytes = Read(**file, granule * kGranuleSize, right.size());
      if (bytes.has_value()) {
        ASSERT_EQ(*bytes, right) << "WRONG BYTES in granule " << granule;
      } else {
        ASSERT_THAT(bytes, HasCode(Code::kStale));
        ASSERT_NE(found.known.at(granule), Known::kPresent)
            << "granule " << granule << " was lost";
      }
    }
    CheckShared(**file, found.All(Known::kPresent));
    for (const auto& [granule, right] : found.truth) {
      ASSERT_OK((*file)->Put(granule, right));
    }
    ASSERT_THAT(Read(**file, 0, found.size), IsOkAndHolds(whole_));
    CheckShared(**file, true);
    // The liar's folder is what it is; nothing of it is in the way.
    auto liar = (*cache)->OpenObject(kEndpoint, liar_.id, liar_.size);
    ASSERT_OK(liar);
    ASSERT_OK((*liar)->Put(0, liar_.truth.at(0)));
  }
  void CheckShared(CacheFile& file, bool complete) {
    const auto shared = file.Share();
    ASSERT_TRUE(shared.has_value() || !complete) << shared.error().ToString();
    if (!shared.has_value()) return;
    Bytes bytes(file.size());
    ASSERT_EQ(::pread(shared->get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
    ASSERT_EQ(bytes, whole_) << "WRONG BYTES in a passed descriptor";
  }
  // Another namespace sees what is verified.
  void CheckMirror(ObjectCache& cache, const Modelled& found) {
    auto file = cache.OpenObject(kMirror, found.id, found.size);
    ASSERT_OK(file);
    const auto bytes = Read(**file, 0, found.size);
    if (bytes.has_value()) {
      ASSERT_EQ(*bytes, whole_);
      ASSERT_NE(found.verified, Known::kAbsent) << "sees what is not verified";
    } else {
      ASSERT_NE(found.verified, Known::kPresent);
    }
  }

  void CheckAfterKill(int step) {
    Modelled found = object_;
    for (auto& [granule, known] : found.known) {
      known = MustHave(granule, step) ? Known::kPresent : Known::kMaybe;
    }
    found.verified = step < kPut + 3 || step >= kEvicted    ? Known::kAbsent
                     : step == kPromoted || step == kShared ? Known::kPresent
                                                            : Known::kMaybe;
    Check(folder(), found);
  }

  // In another boot: what is whole on the disk is there.
  void CheckAfterPowerCut(const CrashTracer& tracer,
                          const CrashTracer::Fate& fate, uint64_t seed) {
    const TempFolder copy(Base());
    tracer.CopyAfterPowerCut(folder(), copy.path() + "/cache", fate, seed);
    const std::string object = ObjectIn(copy.path() + "/cache");
    Modelled found = object_;
    found.verified = Known::kMaybe;
    for (auto& [granule, known] : found.known) {
      known = FoundOnDisk(found, object, granule);
    }
    const std::string other_boot(16, 'b');
    const UniqueFd meta(::open((object + "/meta").c_str(), O_WRONLY));
    if (HasHeader(found, object)) {
      ASSERT_EQ(::pwrite(meta.get(), other_boot.data(), 16, 136), 16);
    }
    Check(copy.path() + "/cache", found);
  }

  const TempFolder base_{Base()};
  Modelled object_;
  const Modelled liar_;
  Bytes whole_;
  std::atomic<int>* step_ = nullptr;
};

TEST_F(CrashTest, NoByteIsWrongWhereverItIsKilledOrThePowerIsCut) {
  using Lost = CrashTracer::Lost;
  const auto of = [](Lost data, Lost others) {
    return [=](const std::string& path) {
      return path.ends_with("/data") ? data : others;
    };
  };
  const std::vector<CrashTracer::Fate> fates = {
      of(Lost::kAll, Lost::kAll), of(Lost::kUnsynced, Lost::kUnsynced),
      of(Lost::kUnsynced, Lost::kNothing), of(Lost::kNothing, Lost::kUnsynced),
      of(Lost::kSome, Lost::kSome)};
  std::map<std::string, uint64_t> kinds;
  uint64_t cuts = 0;
  for (uint64_t calls = 0;; ++calls) {
    std::filesystem::remove_all(folder());
    *step_ = kNothing;
    CrashTracer tracer;
    const auto run = tracer.RunAndKill([this] { return Sequence(); }, calls);
    if (!run) GTEST_SKIP() << "no process may be traced here";
    if (!run->killed) {
      ASSERT_EQ(run->status, 0);
      ASSERT_EQ(step_->load(), kLiarRemoved);
      break;
    }
    ++kinds[run->next];
    const int step = step_->load();
    SCOPED_TRACE(fmt::format("killed at change {} ({}), step {}", calls,
                             run->next, step));
    if (!std::filesystem::exists(folder())) continue;
    for (size_t i = 0; i < fates.size(); ++i) {
      SCOPED_TRACE(fmt::format("then power cut {}", i));
      CheckAfterPowerCut(tracer, fates[i], calls);
      if (HasFailure()) return;
      ++cuts;
    }
    CheckAfterKill(step);
    if (HasFailure()) return;
  }
  std::string text;
  uint64_t kills = 0;
  for (const auto& [kind, count] : kinds) {
    text += fmt::format(" {}={}", kind, count);
    kills += count;
  }
  for (const char* kind : {"pwrite", "sync", "msync", "fallocate", "ftruncate",
                           "mkdir", "rename", "unlink", "create"}) {
    EXPECT_GT(kinds[kind], 0u) << kind;
  }
  std::printf("kills=%lu power_cuts=%lu%s\n", kills, cuts, text.c_str());
}

}  // namespace
}  // namespace weightfs
