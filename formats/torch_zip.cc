#include "formats/torch_zip.h"

#include <bit>
#include <charconv>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/pickle.h"
#include "formats/text.h"
#include "formats/torch_tensors.h"
#include "formats/zip_reader.h"

namespace weightfs {
namespace {

constexpr uint64_t kNewestTorchVersion = 10;
constexpr uint64_t kTorchAlignment = 64;  // where the archive does not say
constexpr uint64_t kMaxTorchAlignment = 1 << 20;

// The small members, without the archive's folder; null if it has none.
constexpr std::string_view kSmallMembers[] = {
    "data.pkl", "constants.pkl", "byteorder",
    "version",  ".data/version", ".storage_alignment"};

// Decimal digits, perhaps with a line feed behind them; 0 for anything else.
uint64_t LeadingNumber(std::string_view text) {
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

class TorchZipParser {
 public:
  explicit TorchZipParser(WindowReader& reader) : reader_(reader) {}

  Result<TensorIndex> Parse() {
    ASSIGN_OR_RETURN(zip_, ZipReader::Open(reader_));
    RETURN_IF_ERROR(FindFolder());
    RETURN_IF_ERROR(ReadSmallMembers());
    RETURN_IF_ERROR(CheckHeaders());
    TorchCollector collector;
    RETURN_IF_ERROR(Collect("data.pkl", {}, "data/", collector));
    if (small_.contains("constants.pkl")) {
      RETURN_IF_ERROR(
          Collect("constants.pkl", "constants", "constants/", collector));
    }
    contents_ = std::move(collector).Take();
    RETURN_IF_ERROR(LocateStorages());
    return PlaceTensors();
  }

 private:
  // Where a storage's bytes are, or why they are not.
  struct Place {
    const ZipMember* member = nullptr;
    Result<uint64_t> start{0};
  };

  // torch takes the first member's folder for the archive's.
  Result<> FindFolder() {
    const auto& members = zip_.members();
    const size_t slash =
        members.empty() ? std::string::npos : members[0].name.find('/');
    if (slash == std::string::npos) {
      return MakeError(Code::kCorrupt,
                       "torch: the archive's first member is in no folder");
    }
    folder_ = members[0].name.substr(0, slash + 1);
    return {};
  }

  Result<> ReadSmallMembers() {
    std::vector<std::string_view> names;
    std::vector<const ZipMember*> members;
    for (const std::string_view name : kSmallMembers) {
      const ZipMember* member = zip_.Find(folder_ + std::string(name));
      if (member == nullptr) continue;
      names.push_back(name);
      members.push_back(member);
    }
    if (names.empty() || names[0] != "data.pkl") {
      return MakeError(Code::kUnsupported,
                       "torch: there is no {}data.pkl in the archive", folder_);
    }
    ASSIGN_OR_RETURN(auto contents,
                     ZipReader::ReadMembers(reader_, members, kMaxPickleSize));
    for (size_t i = 0; i < names.size(); ++i) {
      small_.emplace(names[i], std::move(contents[i]));
    }
    return {};
  }

  Result<> CheckHeaders() {
    for (const std::string_view name : {"version", ".data/version"}) {
      const auto found = small_.find(name);
      if (found == small_.end()) continue;
      const uint64_t version = LeadingNumber(found->second);
      if (version == 0 || version > kNewestTorchVersion) {
        return MakeError(Code::kUnsupported, "torch: version {} is not known",
                         QuoteName(found->second));
      }
    }
    if (const auto order = small_.find("byteorder"); order != small_.end()) {
      big_endian_ = order->second == "big";
      if (!big_endian_ && order->second != "little") {
        return MakeError(Code::kCorrupt, "torch: byteorder is {}",
                         QuoteName(order->second));
      }
    }
    if (const auto said = small_.find(".storage_alignment");
        said != small_.end()) {
      const uint64_t alignment = LeadingNumber(said->second);
      if (std::has_single_bit(alignment) && alignment <= kMaxTorchAlignment) {
        alignment_ = alignment;
      }
    }
    return {};
  }

  Result<> Collect(std::string_view member, std::string_view prefix,
                   std::string_view folder, TorchCollector& collector) {
    auto pickle = Pickle::Parse(small_.find(member)->second);
    if (!pickle.has_value()) {
      return std::move(pickle).error().AddContext(
          fmt::format("torch: {}", member));
    }
    collector.Add(*pickle, prefix, folder);
    return {};
  }

  Result<> LocateStorages() {
    const auto& storages = contents_.storages;
    std::vector<bool> needed(storages.size(), false);
    for (const TorchTensor& tensor : contents_.tensors) {
      const auto size = DenseSize(tensor.dtype, tensor.shape);
      if (size.has_value() && *size > 0) needed[tensor.storage] = true;
    }
    places_.resize(storages.size());
    std::vector<const ZipMember*> members;
    std::vector<size_t> which;
    for (size_t i = 0; i < storages.size(); ++i) {
      const std::string name = folder_ + storages[i].key;
      const ZipMember* member = zip_.Find(name);
      Place& place = places_[i];
      place.member = member;
      if (member == nullptr) {
        place.start =
            MakeError(Code::kCorrupt, "there is no member {}", QuoteName(name));
      } else if (!member->IsStored()) {
        place.start =
            MakeError(Code::kUnsupported, "member {} is {}", QuoteName(name),
                      member->IsEncrypted() ? "encrypted" : "compressed");
      } else if (needed[i]) {
        members.push_back(member);
        which.push_back(i);
      }
    }
    ASSIGN_OR_RETURN(const auto starts,
                     ZipReader::Locate(reader_, members, alignment_));
    for (size_t i = 0; i < which.size(); ++i) {
      places_[which[i]].start = starts[i];
    }
    return {};
  }

  Result<TensorInfo> PlaceTensor(const TorchTensor& tensor) const {
    ASSIGN_OR_RETURN(const uint64_t size,
                     DenseSize(tensor.dtype, tensor.shape));
    if (size == 0) return PlaceTorchTensor(tensor, 0, 0);
    const Place& place = places_[tensor.storage];
    ASSIGN_OR_RETURN(const uint64_t start, Result<uint64_t>(place.start));
    if (tensor.view_size > place.member->size) {
      return MakeError(Code::kCorrupt, "member {} has {} bytes, its storage {}",
                       QuoteName(place.member->name), place.member->size,
                       tensor.view_size);
    }
    if (big_endian_ && DTypeBits(tensor.dtype) > 8) {
      return MakeError(Code::kUnsupported, "is big-endian");
    }
    return PlaceTorchTensor(tensor, start, place.member->size);
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
  ZipReader zip_;
  std::string folder_;  // with its slash
  std::map<std::string_view, std::string> small_;
  bool big_endian_ = false;
  uint64_t alignment_ = kTorchAlignment;
  TorchContents contents_;
  std::vector<Place> places_;  // of contents_.storages
};

}  // namespace

Result<TensorIndex> ReadTorchZip(WindowReader& reader) {
  return TorchZipParser(reader).Parse();
}

}  // namespace weightfs
