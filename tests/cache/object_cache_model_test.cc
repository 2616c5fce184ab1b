// The cache against a model: random operations and faults, by two processes
// that share a folder and one of another namespace, over a disk that loses what
// was not synced. The model knows which granules must be there, may be there or
// cannot be; whatever is read is compared with the truth.
//
// WEIGHTFS_MODEL_SEED and WEIGHTFS_MODEL_OPERATIONS replay a run.

#include <sys/stat.h>

#include <cstdio>
#include <map>
#include <random>

#include "cache/cache_space.h"
#include "cache/slab_evictor.h"
#include "tests/cache/model_world.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

class ModelTest : public ModelWorld {
 protected:
  void DoRead() {
    const Modelled& object = AnyObject();
    Process& process = AnyWriter();
    const uint64_t first = AnyGranule(object);
    uint64_t last = first;
    while (object.truth.contains(last + 1) && OneIn(2)) ++last;
    const uint64_t start = first * kG + Random(object.truth.at(first).size());
    const uint64_t end = last * kG + Random(object.truth.at(last).size()) + 1;
    if (start >= end) return;
    CacheFile& file = *process.files.at(&object);
    if (ReadAndCompare(object, file, start, end)) {
      ASSERT_FALSE(object.Any(Known::kAbsent, first, last))
          << "read what was never there";
    } else {
      ASSERT_FALSE(object.All(Known::kPresent, first, last))
          << "bytes were lost";
    }
  }

  // The disk fails every read, or has nothing in memory.
  void DoReadFromABadDisk() {
    const Modelled& object = AnyObject();
    Process& process = AnyWriter();
    const uint64_t g = AnyGranule(object);
    CacheFile& file = *process.files.at(&object);
    Bytes out(object.truth.at(g).size());
    const auto pin = file.Pin(g * kG, out.size());
    ASSERT_OK(pin);
    process.disk.cold = true;
    ASSERT_FALSE(file.TryRead(g * kG, out)) << "waited for the disk";
    process.disk.cold = false;
    process.disk.read_error = EIO;
    ASSERT_FALSE(file.TryRead(g * kG, out));
    const auto result = file.Read(g * kG, out);
    ASSERT_FALSE(result.has_value());
    ASSERT_TRUE(result.error().code() == Code::kIo ||
                object.known.at(g) != Known::kPresent);
    process.disk.read_error = 0;
  }

  void DoPut() {
    Modelled& object = AnyObject();
    Process& process = AnyWriter();
    const uint64_t g = AnyGranule(object);
    const uint64_t fault = Random(12);
    FaultyDisk& disk = process.disk;
    if (fault == 0) disk.write_error = ENOSPC;
    if (fault == 1) disk.write_error = EIO;
    if (fault == 2) disk.tear_next_write = true;
    if (fault == 3) disk.short_writes = 1 + Random(kG);
    const auto result = process.files.at(&object)->Put(g, object.truth.at(g));
    disk.write_error = 0;
    disk.short_writes = 0;
    const bool torn = fault == 2 && !disk.tear_next_write.exchange(false);
    if (!result.has_value()) {
      ASSERT_LT(fault, 2u) << result.error().ToString();
      ASSERT_NE(object.known.at(g), Known::kPresent)
          << "written though it was there";
      object.known[g] = Known::kAbsent;
      return;
    }
    object.known[g] = torn ? OnDisk(object, g) : Known::kPresent;
  }

  // As a reader does: what is absent is fetched and kept, and then there.
  void DoFetch() {
    Modelled& object = AnyObject();
    Process& process = AnyWriter();
    const uint64_t g = AnyGranule(object);
    const uint64_t end = g * kG + object.truth.at(g).size();
    CacheFile& file = *process.files.at(&object);
    if (ReadAndCompare(object, file, g * kG, end)) {
      ASSERT_NE(object.known.at(g), Known::kAbsent);
    } else {
      ASSERT_NE(object.known.at(g), Known::kPresent);
      ASSERT_OK(file.Put(g, object.truth.at(g)));
      ASSERT_TRUE(ReadAndCompare(object, file, g * kG, end));
    }
    object.known[g] = Known::kPresent;
  }

  void DoPin() {
    Process& process = AnyWriter();
    auto& pins = process.pins;
    if (pins.size() > 2 || (OneIn(2) && !pins.empty())) {
      pins.erase(pins.begin() + static_cast<ptrdiff_t>(Random(pins.size())));
      return;
    }
    const Modelled& object = AnyObject();
    const uint64_t g = AnyGranule(object);
    auto pin = process.files.at(&object)->Pin(g * kG, 1);
    ASSERT_OK(pin);
    pins.emplace_back(&object, g / kGranulesPerSlab, std::move(*pin));
  }

  // As another process does.
  Result<uint64_t> Evict(const Modelled& object, uint64_t slab,
                         uint64_t wanted) {
    ASSIGN_OR_RETURN(auto evictor,
                     SlabEvictor::Open(*plain_, evictor_disk_, PathOf(object)));
    auto result = evictor->Evict(slab, wanted);
    evictor->Demote();
    return result;
  }
  void DoEvict() {
    Modelled& object = AnyObject();
    const uint64_t slab = Random((object.size + kSlabSize - 1) / kSlabSize);
    const bool pinned = IsPinned(object, slab);
    const uint64_t fault = Random(10);
    if (fault == 0) evictor_disk_.sync_error = EIO;
    if (fault == 1) evictor_disk_.punch_error = EIO;
    const bool partly = fault == 2;
    const auto freed = Evict(object, slab, partly ? kG : UINT64_MAX);
    evictor_disk_.sync_error = 0;
    evictor_disk_.punch_error = 0;
    if (pinned) {
      ASSERT_THAT(freed, HasCode(Code::kStale));
      return ComparePassed();
    }
    ASSERT_TRUE(freed.has_value() || fault < 2) << freed.error().ToString();
    for (auto& [g, known] : object.known) {
      if (g / kGranulesPerSlab != slab) continue;
      known = partly ? OnDisk(object, g) : Known::kAbsent;
    }
    if (!freed.has_value() || *freed > 0) object.verified = Known::kAbsent;
    // What is punched must not come back: not even if `meta` is lost now.
    if (OneIn(8)) {
      machine_.Lose(FileOf(object, "meta"), Lottery());
      LookAtDisk(object);
      if (!HasHeader(object, FolderOf(object))) MadeAnew(object);
    }
  }

  // Evicts down to a limit, as every process does: what is used the least goes
  // first, what is pinned stays.
  void DoTrim() {
    const CacheLimits limits{.max_bytes = (1 << 20) + Random(3 << 20)};
    CacheSpace space(*plain_, evictor_disk_, limits);
    space.Trim();
    bool pinned = false;
    for (Modelled* object : Objects()) {
      for (auto& [g, known] : object->known) {
        const Known now = OnDisk(*object, g);
        if (IsPinned(*object, g / kGranulesPerSlab)) {
          ASSERT_EQ(now, known) << "a pinned granule went, " << g;
          pinned = true;
        }
        ASSERT_FALSE(now == Known::kPresent && known == Known::kAbsent);
        if (now != known) object->verified = Known::kMaybe;
        known = now;
      }
    }
    ASSERT_TRUE(pinned || space.UsedBytes() <= limits.max_bytes)
        << space.UsedBytes() << " bytes are over " << limits.max_bytes;
    ComparePassed();
  }

  // Hashes the whole file as the verifier does, and tells the cache.
  void DoPromote() {
    CacheFile& file = *AnyWriter().files.at(&small_);
    const std::vector<uint32_t> generations = {file.Generation(0)};
    const auto bytes = Read(file, 0, small_.size);
    if (!bytes.has_value()) {
      ASSERT_FALSE(small_.All(Known::kPresent)) << "bytes were lost";
      return;
    }
    ASSERT_EQ(*bytes, whole_);
    small_.KnowAll(Known::kPresent);
    if (OneIn(4) && !IsPinned(small_, 0)) {
      // What was hashed is not what is there.
      ASSERT_OK(Evict(small_, 0, UINT64_MAX));
      PutAllOf(small_, file);
      ASSERT_THAT(file.Promote(generations), HasCode(Code::kStale));
      small_.verified = Known::kAbsent;
      return;
    }
    ASSERT_OK(file.Promote(generations));
    ASSERT_TRUE(file.verified());
    small_.verified = Known::kPresent;
  }
  static void PutAllOf(const Modelled& object, CacheFile& file) {
    for (const auto& [g, bytes] : object.truth) ASSERT_OK(file.Put(g, bytes));
  }

  // Another namespace: sees what is verified, and nothing else.
  void DoReadAsAnother() {
    auto& file = mirror_.files[&small_];
    // What was verified when it was opened may be so no more.
    const bool again = file != nullptr && mirror_trusts_ && OneIn(2);
    if (!again) {
      file.reset();
      auto opened = mirror_.cache->OpenObject(kMirror, small_.id, small_.size);
      ASSERT_OK(opened);
      file = std::move(opened).value();
      mirror_trusts_ = file->verified();
    }
    const uint64_t g = AnyGranule(small_);
    const uint64_t end = g * kG + small_.truth.at(g).size();
    if (ReadAndCompare(small_, *file, g * kG, end)) {
      ASSERT_NE(small_.verified, Known::kAbsent) << "sees what is not verified";
      ASSERT_NE(small_.known.at(g), Known::kAbsent);
    } else {
      ASSERT_FALSE(!again && small_.verified == Known::kPresent &&
                   small_.known.at(g) == Known::kPresent);
    }
  }

  void DoShare() {
    Modelled& object = AnyObject();
    Process& process = AnyWriter();
    const bool sync_fails = OneIn(5);
    const bool fails = sync_fails || !process.disk.KnowsOfLosses();
    if (sync_fails) process.disk.sync_error = EIO;
    auto shared = process.files.at(&object)->Share();
    process.disk.sync_error = 0;
    if (!shared.has_value()) {
      ASSERT_TRUE(fails || &object == &big_ || !object.All(Known::kPresent))
          << shared.error().ToString();
      return;
    }
    ASSERT_FALSE(&object == &big_ || object.Any(Known::kAbsent));
    object.KnowAll(Known::kPresent);
    if (passed_.size() > 1) passed_.erase(passed_.begin());
    passed_.push_back(
        std::make_unique<Passed>(std::move(*shared), object.size, OneIn(2)));
    ComparePassed();
  }
  void ComparePassed() {
    for (const auto& passed : passed_) {
      ASSERT_EQ(passed->Read(), whole_) << "WRONG BYTES in a passed descriptor";
      bytes_compared_ += small_.size;
    }
  }
  void DoEndClients() { passed_.clear(); }

  // An origin that lies: its bytes are not those of the id.
  void DoPoison() {
    const Modelled liar(kG + 99, 2);
    std::array<std::shared_ptr<CacheFile>, 2> files;
    for (size_t i = 0; i < 2; ++i) {
      auto file =
          Writers()[i]->cache->OpenObject(kEndpoint, liar.id, liar.size);
      ASSERT_OK(file);
      ASSERT_EQ((*file)->CachedFraction(), 0);
      files[i] = std::move(*file);
    }
    PutAllOf(liar, *files[0]);
    ASSERT_TRUE(ReadAndCompare(liar, *files[1], 0, liar.size));
    if (OneIn(2)) {
      files[1]->Poison();
    } else {
      ASSERT_THAT(files[1]->Share(), HasCode(Code::kCorrupt));
    }
    for (const auto& file : files) {
      ASSERT_FALSE(file->IsWhole());
      ASSERT_FALSE(ReadAndCompare(liar, *file, 0, liar.size));
    }
  }

  // A disk too full for a new object's `meta`.
  void DoOpenOnAFullDisk() {
    Process& process = AnyWriter();
    const ContentId id = Sha256Id("789abcde"[Random(8)]);
    std::filesystem::remove_all(ObjectFolder(id));
    process.disk.allocate_error = ENOSPC;
    ASSERT_THAT(process.cache->OpenObject(kEndpoint, id, kG),
                HasCode(Code::kNoSpace));
    process.disk.allocate_error = 0;
    ASSERT_OK(process.cache->OpenObject(kEndpoint, id, kG));
  }

  // Bit rot is found by whoever hashes after it, and after the last seal.
  void DoRot() {
    Modelled& object = AnyObject();
    const uint64_t g = AnyGranule(object);
    if (object.known.at(g) == Known::kAbsent) return;
    StopAll();
    FlipBit(FileOf(object, "data"), g * kG + Random(object.truth.at(g).size()));
    LookAtDisk(object);
    NextBoot();
    StartAll();
  }

  VolatileDisk::Chooses Lottery() {
    const uint64_t all = Random(4);  // 0: all pages, 1: none, else some
    return [this, all](uint64_t) { return all == 0 || (all > 1 && OneIn(2)); };
  }

  // A write-back that fails: the kernel drops pages, and tells all who have
  // `data` open.
  void DoLosePages() {
    Modelled& object = AnyObject();
    if (OneIn(3)) {
      machine_.Lose(FileOf(object, "meta"), Lottery());
      // A header that was never on the disk: found by who opens it.
      if (!HasHeader(object, FolderOf(object))) return MadeAnew(object);
    } else {
      struct stat status {};
      ASSERT_EQ(::stat(FileOf(object, "data").c_str(), &status), 0);
      machine_.Lose(FileOf(object, "data"), Lottery());
      for (Process* process : {&one_, &two_, &mirror_}) {
        process->disk.LoseWritesOf(status.st_ino);
      }
    }
    LookAtDisk(object);
    ComparePassed();
  }

  void DoWriteBack() {
    const Modelled& object = AnyObject();
    machine_.WriteBack(FileOf(object, OneIn(3) ? "data" : "meta"), Lottery());
  }

  void NextBoot() {
    ++boot_;
    for (const Modelled* object : Objects()) {
      const UniqueFd meta(::open(FileOf(*object, "meta").c_str(), O_WRONLY));
      if (!meta.valid()) continue;
      // To the cache, this boot has another id now than the one that is stored.
      std::array<uint64_t, 2> id{boot_, ~boot_};
      static_cast<void>(::pwrite(meta.get(), id.data(), sizeof(id), 136));
    }
  }
  void DoPowerCut() {
    StopAll();
    machine_.LoseAll(Lottery());
    for (Modelled* object : Objects()) LookAtDisk(*object);
    NextBoot();
    StartAll();
  }

  // A process dies in the middle of an operation, or the power is cut there.
  void DoCrash() {
    Process& process = AnyWriter();
    Modelled& object = AnyObject();
    const uint64_t g = AnyGranule(object);
    CacheFile& file = *process.files.at(&object);
    const uint64_t what =
        IsPinned(object, g / kGranulesPerSlab) ? 1 + Random(4) : Random(5);
    FaultyDisk& disk = what == 0 ? evictor_disk_ : process.disk;
    disk.crash_after = static_cast<int64_t>(what < 3 ? Random(4) : 0);
    try {
      if (what == 0) {
        static_cast<void>(Evict(object, g / kGranulesPerSlab, UINT64_MAX));
      } else if (what == 1) {
        static_cast<void>(file.Share());
      } else if (what == 2) {
        const ContentId id = Sha256Id('f');
        std::filesystem::remove_all(ObjectFolder(id));
        static_cast<void>(process.cache->OpenObject(kEndpoint, id, kG));
      } else {
        static_cast<void>(file.Put(g, object.truth.at(g)));
      }
    } catch (const DiskCrash&) {
      ++crashes_;
    }
    disk.crash_after = -1;
    // All that was published before stays so, but what was being evicted.
    if (what == 0) {
      for (auto& [granule, known] : object.known) {
        if (granule / kGranulesPerSlab == g / kGranulesPerSlab) {
          known = OnDisk(object, granule);
        }
      }
      if (object.verified == Known::kPresent) object.verified = Known::kMaybe;
    } else if (what > 2 && object.known.at(g) != Known::kPresent) {
      object.known[g] = OnDisk(object, g);
    }
    if (OneIn(3)) return DoPowerCut();
    Start(process);
  }

  // The object is damaged or removed behind everybody's back.
  void DoRuin() {
    Modelled& object = AnyObject();
    const std::string meta = FileOf(object, "meta");
    const std::string data = FileOf(object, "data");
    if (&object == &small_) DoEndClients();
    const uint64_t kind = Random(5);
    if (kind == 0) std::filesystem::resize_file(meta, Random(9000));
    if (kind == 1) std::filesystem::resize_file(data, Random(object.size));
    if (kind == 2) FlipBit(meta, Random(128));
    if (kind == 3) std::filesystem::remove_all(FolderOf(object));
    if (kind == 4) std::filesystem::remove(OneIn(2) ? meta : data);
    // A header that is damaged is found by those who open it again.
    if (kind == 2) return MadeAnew(object);
    object.KnowAll(Known::kMaybe);
    object.verified = Known::kMaybe;
    for (int i = 0; i < 20; ++i) DoRead();
    MadeAnew(object);
  }
  // All open it again, and find it damaged.
  void MadeAnew(Modelled& object) {
    if (&object == &small_) passed_.clear();
    mirror_.files.clear();
    for (Process* process : Writers()) process->Forget(object);
    for (Process* process : Writers()) Reopen(*process, object);
    object.KnowAll(Known::kAbsent);
    object.verified = Known::kAbsent;
  }

  struct Operation {
    const char* name;
    double weight;
    void (ModelTest::*run)();
    uint64_t runs = 0;
  };
  std::vector<Operation> operations_ = {
      {"read", 48'000, &ModelTest::DoRead},
      {"fetch", 14'000, &ModelTest::DoFetch},
      {"put", 18'000, &ModelTest::DoPut},
      {"pin", 6'000, &ModelTest::DoPin},
      {"evict", 5'000, &ModelTest::DoEvict},
      {"trim", 250, &ModelTest::DoTrim},
      {"bad-disk", 1'000, &ModelTest::DoReadFromABadDisk},
      {"promote", 2'000, &ModelTest::DoPromote},
      {"read-as-another", 2'000, &ModelTest::DoReadAsAnother},
      {"share", 1'500, &ModelTest::DoShare},
      {"end-clients", 700, &ModelTest::DoEndClients},
      {"poison", 200, &ModelTest::DoPoison},
      {"disk-full", 200, &ModelTest::DoOpenOnAFullDisk},
      {"write-back", 1'500, &ModelTest::DoWriteBack},
      {"lose-pages", 600, &ModelTest::DoLosePages},
      {"crash", 300, &ModelTest::DoCrash},
      {"power-cut", 100, &ModelTest::DoPowerCut},
      {"restart", 100, &ModelTest::DoRestart},
      {"reboot", 60, &ModelTest::DoReboot},
      {"rot", 120, &ModelTest::DoRot},
      {"ruin", 60, &ModelTest::DoRuin},
  };
  void DoRestart() { Start(AnyWriter()); }
  void DoReboot() {
    StopAll();
    NextBoot();
    StartAll();
  }
  Operation& AnyOperation() {
    std::vector<double> weights;
    for (const Operation& each : operations_) weights.push_back(each.weight);
    return operations_[std::discrete_distribution<size_t>(
        weights.begin(), weights.end())(random_)];
  }

  uint64_t crashes_ = 0;
};

TEST_F(ModelTest, RandomOperationsAgreeWithTheModel) {
  const uint64_t count =
      FromEnvironment("WEIGHTFS_MODEL_OPERATIONS", kModelOperations);
  for (uint64_t i = 0; i < count; ++i) {
    Operation& operation = AnyOperation();
    ++operation.runs;
    (this->*operation.run)();
    if (HasFailure()) {
      FAIL() << "at operation " << i << ", " << operation.name << ", seed "
             << seed_;
    }
  }
  std::string kinds;
  for (const Operation& operation : operations_) {
    EXPECT_TRUE(operation.runs > 0 || count < kModelOperations)
        << operation.name;
    kinds += fmt::format(" {}={}", operation.name, operation.runs);
  }
  std::printf("operations=%lu seed=%lu crashes=%lu bytes_compared=%lu%s\n",
              count, seed_, crashes_, bytes_compared_, kinds.c_str());
}

}  // namespace
}  // namespace weightfs
