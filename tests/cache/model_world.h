// The world of the cache's model test: a machine that may lose what was not
// synced, a cache folder, two processes that share it, one of another
// namespace, clients that got descriptors, and what the model knows.

#ifndef WEIGHTFS_TESTS_CACHE_MODEL_WORLD_H_
#define WEIGHTFS_TESTS_CACHE_MODEL_WORLD_H_

#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cache/cache_folder.h"
#include "tests/cache/model_process.h"
#include "tests/support/volatile_disk.h"

namespace weightfs {

// The machine, the folder and who uses it; random choices; what the disk says.
class ModelWorld : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ObjectCacheTest::SetUp();
    cache_.reset();
    // Some granules at both ends of each slab; its id is not that of the bytes.
    big_ = Modelled(2 * kSlabSize + 3 * kGranuleSize + 77, 0,
                    [](uint64_t granule) {
                      return granule % kGranulesPerSlab < 4 ||
                             granule % kGranulesPerSlab > kGranulesPerSlab - 5;
                    });
    small_ = Modelled(2 * kGranuleSize + 4321, 1);
    whole_ = small_.TakeRightId();
    plain_ = CacheFolder::OpenPlain(folder()).value();
    for (Process* process : Writers()) Start(*process);
    StartCache(mirror_);
  }
  void TearDown() override {
    StopAll();
    plain_.reset();
    machine_.Forget();
    ObjectCacheTest::TearDown();
  }

  std::array<Process*, 2> Writers() { return {&one_, &two_}; }
  std::array<Modelled*, 2> Objects() { return {&big_, &small_}; }

  void StartCache(Process& process) {
    process.Stop();
    auto cache = ObjectCache::Open(folder(), {}, process.disk);
    ASSERT_OK(cache);
    process.cache = std::move(cache).value();
  }
  void Start(Process& process) {
    StartCache(process);
    for (const Modelled* object : Objects()) Reopen(process, *object);
  }
  void Reopen(Process& process, const Modelled& object) {
    process.Forget(object);
    auto file = process.cache->OpenObject(kEndpoint, object.id, object.size);
    ASSERT_OK(file);
    process.files[&object] = std::move(file).value();
  }
  void StopAll() {
    passed_.clear();
    for (Process* process : {&one_, &two_, &mirror_}) process->Stop();
  }
  void StartAll() {
    StartCache(mirror_);
    for (Process* process : Writers()) Start(*process);
  }

  uint64_t Random(uint64_t below) { return random_() % below; }
  bool OneIn(uint64_t count) { return Random(count) == 0; }
  Process& AnyWriter() { return *Writers()[Random(2)]; }
  Modelled& AnyObject() { return OneIn(3) ? small_ : big_; }
  uint64_t AnyGranule(const Modelled& object) {
    auto it = object.truth.begin();
    std::advance(it, static_cast<ptrdiff_t>(Random(object.truth.size())));
    return it->first;
  }

  std::string PathOf(const Modelled& object) const {
    const std::string verified = VerifiedPath(object.id);
    return std::filesystem::exists(folder() + "/" + verified)
               ? verified
               : ObjectPath(kEndpoint, object.id).value();
  }
  std::string FolderOf(const Modelled& object) const {
    return folder() + "/" + PathOf(object);
  }
  std::string FileOf(const Modelled& object, const char* name) const {
    return FolderOf(object) + "/" + name;
  }

  Known OnDisk(const Modelled& object, uint64_t granule) const {
    return FoundOnDisk(object, FolderOf(object), granule);
  }
  void LookAtDisk(Modelled& object) {
    for (auto& [granule, known] : object.known) {
      known = OnDisk(object, granule);
    }
    object.verified = Known::kMaybe;
  }

  // Reads through the file, and judges what comes back. False: nothing came.
  bool ReadAndCompare(const Modelled& object, CacheFile& file, uint64_t start,
                      uint64_t end) {
    const auto pin = file.Pin(start, end - start);
    EXPECT_OK(pin);
    Bytes out(end - start);
    if (!file.TryRead(start, out)) {
      const auto result = file.Read(start, out);
      if (!result.has_value()) {
        bool absent = !file.IsWhole();  // and known to be, by now
        for (uint64_t g = start / kGranuleSize; g * kGranuleSize < end; ++g) {
          absent = absent || !file.Has(g);
        }
        EXPECT_TRUE(result.error().code() == Code::kIo || absent);
        return false;
      }
    }
    EXPECT_TRUE(object.Matches(start, out)) << "WRONG BYTES from " << start;
    bytes_compared_ += end - start;
    return true;
  }
  bool IsPinned(const Modelled& object, uint64_t slab) {
    bool pinned = &object == &small_ && !passed_.empty();
    for (const Process* process : Writers()) {
      for (const auto& [pinned_object, pinned_slab, pin] : process->pins) {
        pinned = pinned || (pinned_object == &object && pinned_slab == slab);
      }
    }
    return pinned;
  }

  const uint64_t seed_ = FromEnvironment("WEIGHTFS_MODEL_SEED", 20240612);
  std::mt19937_64 random_{seed_};
  VolatileDisk machine_;
  Process one_{machine_};
  Process two_{machine_};
  Process mirror_{machine_};
  bool mirror_trusts_ = false;
  FaultyDisk evictor_disk_{machine_};
  std::unique_ptr<CacheFolder> plain_;
  Modelled big_;    // three slabs, of which little is used
  Modelled small_;  // used as a whole: verified, sealed, passed on
  Bytes whole_;     // of the small one
  std::vector<std::unique_ptr<Passed>> passed_;
  uint64_t boot_ = 0;
  uint64_t bytes_compared_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_MODEL_WORLD_H_
