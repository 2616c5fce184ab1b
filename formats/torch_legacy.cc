#include "formats/torch_legacy.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/base/byte_reader.h"
#include "formats/base/checked.h"
#include "formats/pickle.h"
#include "formats/text.h"
#include "formats/torch_tensors.h"

namespace weightfs {
namespace {

// 0x1950a86a20f9469cfc6c, as LONG1 holds it.
constexpr std::string_view kLegacyMagic =
    "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
constexpr int64_t kLegacyProtocol = 1001;
constexpr uint64_t kSizeWord = 8;  // the i64 before each storage
// Size words that are read one by one, at most.
constexpr size_t kMaxSizeReads = 8192;

std::string_view TextOf(std::span<const std::byte> bytes) {
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): char is bytes
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class LegacyParser {
 public:
  explicit LegacyParser(WindowReader& reader) : reader_(reader) {}

  Result<TensorIndex> Parse() {
    RETURN_IF_ERROR(CheckMagic());
    RETURN_IF_ERROR(CheckSystem());
    TorchCollector collector;
    {
      ASSIGN_OR_RETURN(const Pickle object, Next("the object"));
      collector.Add(object, {}, {});
    }
    contents_ = std::move(collector).Take();
    RETURN_IF_ERROR(PlaceStorages());
    RETURN_IF_ERROR(CheckSizeWords());
    return PlaceTensors();
  }

 private:
  // The next pickle. It is valid until the next call.
  Result<Pickle> Next(std::string_view what) {
    while (true) {
      auto pickle = Pickle::ParsePrefix(TextOf(head_).substr(at_));
      if (!pickle.has_value()) {
        return std::move(pickle).error().AddContext(
            fmt::format("torch: {} at {}", what, at_));
      }
      if (*pickle) {
        at_ += (*pickle)->size();
        return std::move(**pickle);
      }
      if (head_.size() == reader_.size()) {
        return MakeError(Code::kCorrupt,
                         "torch: the file ends in {}, which begins at {}", what,
                         at_);
      }
      const uint64_t more =
          head_.empty() ? kTorchProbe : 4 * uint64_t{head_.size()};
      ASSIGN_OR_RETURN(head_, reader_.Read(0, std::min(more, reader_.size())));
    }
  }

  Result<> CheckMagic() {
    ASSIGN_OR_RETURN(const Pickle magic, Next("the magic number"));
    const auto root = magic.root();
    if (magic.kind(root) != Pickle::Kind::kBigInt ||
        magic.Text(root) != kLegacyMagic) {
      return MakeError(Code::kUnsupported, "torch: no magic number");
    }
    ASSIGN_OR_RETURN(const Pickle protocol, Next("the protocol"));
    if (protocol.kind(protocol.root()) != Pickle::Kind::kInt ||
        protocol.Int(protocol.root()) != kLegacyProtocol) {
      return MakeError(Code::kUnsupported, "torch: the protocol is not {}",
                       kLegacyProtocol);
    }
    return {};
  }

  Result<> CheckSystem() {
    ASSIGN_OR_RETURN(const Pickle system, Next("the system's description"));
    const auto items = system.Items(system.root());
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      if (!system.IsText(items[i], "little_endian")) continue;
      if (system.kind(items[i + 1]) != Pickle::Kind::kBool ||
          system.Int(items[i + 1]) == 0) {
        return MakeError(Code::kUnsupported, "torch: the file is big-endian");
      }
    }
    return {};
  }

  // Reads the list of keys: storages follow it in its order.
  Result<> PlaceStorages() {
    ASSIGN_OR_RETURN(const Pickle keys, Next("the list of storages"));
    if (keys.kind(keys.root()) != Pickle::Kind::kList) {
      return MakeError(Code::kCorrupt, "torch: the list of storages is none");
    }
    const auto& storages = contents_.storages;
    std::unordered_map<std::string_view, size_t> by_key;
    for (size_t i = 0; i < storages.size(); ++i) by_key[storages[i].key] = i;
    starts_.resize(storages.size());
    std::optional<uint64_t> end = at_;
    for (const auto item : keys.Items(keys.root())) {
      const bool text = keys.kind(item) == Pickle::Kind::kString;
      const std::string_view key = text ? keys.Text(item) : "";
      const auto found = by_key.find(key);
      if (!text || found == by_key.end()) {
        return MakeError(Code::kUnsupported,
                         "torch: no tensor says how large storage {} is",
                         QuoteName(key));
      }
      const TorchStorage& storage = storages[found->second];
      if (!storage.agreed || starts_[found->second]) {
        return MakeError(Code::kCorrupt,
                         "torch: storage {} comes twice or in two sizes",
                         QuoteName(key));
      }
      starts_[found->second] = *end + kSizeWord;
      order_.push_back(found->second);
      end = CheckedAdd(*end + kSizeWord, storage.size);
      if (!end || *end > reader_.size()) {
        return MakeError(Code::kCorrupt,
                         "torch: storage {} of {} bytes reaches past the "
                         "file's end at {}",
                         QuoteName(key), storage.size, reader_.size());
      }
    }
    whole_ = *end == reader_.size();
    return {};
  }

  // The elements that the file says each storage has.
  Result<> CheckSizeWords() {
    size_t reads = 0;
    for (const size_t i : order_) {
      const uint64_t offset = *starts_[i] - kSizeWord;
      auto word = reader_.Known(offset, kSizeWord);
      std::vector<std::byte> fetched;
      if (!word) {
        if (whole_) continue;
        if (++reads > kMaxSizeReads) {
          return MakeError(Code::kUnsupported,
                           "torch: bytes follow the last of over {} storages",
                           kMaxSizeReads);
        }
        fetched.resize(kSizeWord);
        RETURN_IF_ERROR(reader_.source().ReadAt(offset, fetched));
        word = fetched;
      }
      ByteReader bytes("torch", *word);
      ASSIGN_OR_RETURN(const auto count, bytes.Read<uint64_t>("size"));
      const TorchStorage& storage = contents_.storages[i];
      if (count != storage.size / storage.item) {
        return MakeError(Code::kCorrupt,
                         "torch: at {}, storage {} has {} elements, its "
                         "tensors say {}",
                         offset, QuoteName(storage.key), count,
                         storage.size / storage.item);
      }
    }
    return {};
  }

  Result<TensorInfo> PlaceTensor(const TorchTensor& tensor) const {
    const auto& start = starts_[tensor.storage];
    const TorchStorage& storage = contents_.storages[tensor.storage];
    if (!start) {
      return MakeError(Code::kCorrupt, "its storage {} is not in the file",
                       QuoteName(storage.key));
    }
    return PlaceTorchTensor(tensor, *start, storage.size);
  }

  Result<TensorIndex> PlaceTensors() {
    std::vector<TensorInfo> tensors;
    tensors.reserve(contents_.tensors.size());
    for (const TorchTensor& tensor : contents_.tensors) {
      auto placed = PlaceTensor(tensor);
      if (placed.has_value()) {
        tensors.push_back(std::move(*placed));
      } else {
        contents_.AddProblem(tensor.name, placed.error());
      }
    }
    return TorchIndex(reader_.source().name(), std::move(tensors),
                      std::move(contents_));
  }

  WindowReader& reader_;
  std::span<const std::byte> head_;  // what was read from the file's start
  uint64_t at_ = 0;                  // where the next pickle begins
  TorchContents contents_;
  // Of contents_.storages: where the bytes begin, if the list has it.
  std::vector<std::optional<uint64_t>> starts_;
  std::vector<size_t> order_;  // ordinals of storages, as in the file
  bool whole_ = false;         // the last storage ends where the file does
};

}  // namespace

bool IsTorchLegacy(std::span<const std::byte> head) {
  const auto magic = Pickle::ParsePrefix(TextOf(head).substr(0, 64));
  if (!magic.has_value() || !*magic) return false;
  const auto root = (*magic)->root();
  return (*magic)->kind(root) == Pickle::Kind::kBigInt &&
         (*magic)->Text(root) == kLegacyMagic;
}

Result<TensorIndex> ReadTorchLegacy(WindowReader& reader) {
  return LegacyParser(reader).Parse();
}

}  // namespace weightfs
