#include "formats/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <new>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/base/byte_reader.h"
#include "formats/base/checked.h"
#include "formats/read_window.h"
#include "formats/text.h"

namespace weightfs {
namespace {

constexpr std::string_view kGgufMagic = "GGUF";
constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr uint32_t kDefaultAlignment = 32;
// The least that the file spends on a pair (length and one byte of the key,
// type, value) and on a tensor (length of the name, rank, type, offset).
constexpr uint64_t kLeastPair = 8 + 1 + 4 + 1;
constexpr uint64_t kLeastTensor = 8 + 4 + 4 + 8;
// What a tensor's description takes about, to guess how much is to be read.
constexpr uint64_t kTypicalTensor = 80;

// Types of values, by number.
enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

struct GgufTypeRow {
  std::string_view name;
  uint64_t size;  // bytes; 0: not fixed
};

constexpr std::array<GgufTypeRow, 13> kGgufTypes = {{
    {"u8", 1},
    {"i8", 1},
    {"u16", 2},
    {"i16", 2},
    {"u32", 4},
    {"i32", 4},
    {"f32", 4},
    {"bools", 1},
    {"strings", 0},
    {"arrays", 0},
    {"u64", 8},
    {"i64", 8},
    {"f64", 8},
}};

const GgufTypeRow& RowOf(GgufType type) {
  return kGgufTypes.at(static_cast<size_t>(type));
}

// Types of tensors by their number in the file; nothing where ggml had one and
// dropped it, or never had one.
struct GgmlType {
  uint32_t id;
  DType dtype;
};

constexpr std::array<GgmlType, 35> kGgmlTypes = {{
    {0, DType::kF32},    {1, DType::kF16},     {2, DType::kQ40},
    {3, DType::kQ41},    {6, DType::kQ50},     {7, DType::kQ51},
    {8, DType::kQ80},    {9, DType::kQ81},     {10, DType::kQ2K},
    {11, DType::kQ3K},   {12, DType::kQ4K},    {13, DType::kQ5K},
    {14, DType::kQ6K},   {15, DType::kQ8K},    {16, DType::kIq2Xxs},
    {17, DType::kIq2Xs}, {18, DType::kIq3Xxs}, {19, DType::kIq1S},
    {20, DType::kIq4Nl}, {21, DType::kIq3S},   {22, DType::kIq2S},
    {23, DType::kIq4Xs}, {24, DType::kI8},     {25, DType::kI16},
    {26, DType::kI32},   {27, DType::kI64},    {28, DType::kF64},
    {29, DType::kIq1M},  {30, DType::kBF16},   {34, DType::kTq10},
    {35, DType::kTq20},  {39, DType::kMxfp4},  {40, DType::kNvfp4},
    {41, DType::kQ10},   {42, DType::kQ20},
}};
constexpr std::array<uint32_t, 8> kRemovedGgmlTypes = {4,  5,  31, 32,
                                                       33, 36, 37, 38};

Result<DType> DTypeOfGgml(uint32_t id) {
  for (const GgmlType& type : kGgmlTypes) {
    if (type.id == id) return type.dtype;
  }
  const bool removed =
      std::find(kRemovedGgmlTypes.begin(), kRemovedGgmlTypes.end(), id) !=
      kRemovedGgmlTypes.end();
  return MakeError(Code::kUnsupported, "type: {} {}", id,
                   removed ? "was removed from the format" : "is not known");
}

// A number as JSON writes it; JSON has no infinities and NaNs, Python's words
// for them are used.
template <class T>
std::string NumberText(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  }
  return fmt::format("{}", value);
}

// One reading of a file.
class GgufParser {
 public:
  explicit GgufParser(ByteSource& source)
      : source_(source),
        window_("GGUF", source, {kGgufProbe, kMaxGgufRead, kMaxGgufHeader}) {}

  Result<TensorIndex> Parse() {
    RETURN_IF_ERROR(ReadPreamble());
    for (uint64_t i = 0; i < pair_count_; ++i) RETURN_IF_ERROR(ReadPair());
    for (uint64_t i = 0; i < tensor_count_; ++i) {
      window_.Expect((tensor_count_ - i) * kTypicalTensor);
      RETURN_IF_ERROR(ReadTensor());
    }
    RETURN_IF_ERROR(PlaceTensors());
    return TensorIndex::Create({source_.name()}, std::move(tensors_),
                               std::move(metadata_));
  }

 private:
  Result<> ReadPreamble() {
    ASSIGN_OR_RETURN(const std::string_view magic,
                     ReadText("magic", kGgufMagic.size()));
    if (magic != kGgufMagic) {
      return MakeError(Code::kCorrupt, "magic: {} is not \"GGUF\"",
                       QuoteName(magic));
    }
    ASSIGN_OR_RETURN(const auto version, window_.Number<uint32_t>("version"));
    RETURN_IF_ERROR(CheckVersion(version));
    ASSIGN_OR_RETURN(tensor_count_, window_.Number<uint64_t>("tensor count"));
    ASSIGN_OR_RETURN(pair_count_, window_.Number<uint64_t>("pair count"));
    RETURN_IF_ERROR(CheckCount("tensor count", tensor_count_, kLeastTensor,
                               kMaxGgufTensors));
    return CheckCount("pair count", pair_count_, kLeastPair, kMaxGgufPairs);
  }

  static Result<> CheckVersion(uint32_t version) {
    if (version == 2 || version == 3) return {};
    if (version == 0) return MakeError(Code::kCorrupt, "version: is 0");
    // As ggml tells: the number's own bytes are the wrong way round.
    if ((version & 0xffff) == 0) {
      return MakeError(Code::kUnsupported, "version: the file is big-endian");
    }
    return MakeError(Code::kUnsupported, "version: {}, 2 and 3 are read",
                     version);
  }

  Result<> CheckCount(std::string_view field, uint64_t count, uint64_t least,
                      uint64_t most) const {
    if (count > window_.remaining() / least) {
      return MakeError(Code::kCorrupt, "{}: {} do not fit a file of {} bytes",
                       field, count, source_.size());
    }
    if (count > most) {
      return MakeError(Code::kUnsupported, "{}: {}, at most {} are read", field,
                       count, most);
    }
    return {};
  }

  // The next bytes as text, valid until the next read.
  Result<std::string_view> ReadText(std::string_view field, uint64_t length) {
    ASSIGN_OR_RETURN(const auto bytes, window_.Take(field, length));
    return ByteReader("GGUF", bytes).String(field, length);
  }

  // A string's length, which the file has bytes for.
  Result<uint64_t> ReadLength(std::string_view field) {
    ASSIGN_OR_RETURN(const auto length, window_.Number<uint64_t>(field));
    if (length <= window_.remaining()) return length;
    return MakeError(Code::kCorrupt,
                     "{}: {} bytes at byte {} do not fit a file of {}", field,
                     length, window_.offset(), source_.size());
  }

  Result<std::string> ReadName(std::string_view field, uint64_t most) {
    ASSIGN_OR_RETURN(const uint64_t length, ReadLength(field));
    if (length > most) {
      return MakeError(Code::kUnsupported, "{}: {} bytes, at most {} are read",
                       field, length, most);
    }
    ASSIGN_OR_RETURN(const auto text, ReadText(field, length));
    return std::string(text);
  }

  Result<> ReadPair() {
    ASSIGN_OR_RETURN(std::string key, ReadName("key", kMaxGgufKey));
    if (key.empty()) return MakeError(Code::kCorrupt, "key: is empty");
    const auto [at, fresh] = keys_.insert(std::move(key));
    auto text =
        fresh ? ReadValue(*at) : MakeError(Code::kCorrupt, "key: comes twice");
    if (!text.has_value()) {
      return std::move(text.error())
          .AddContext(fmt::format("pair {}", QuoteName(*at)));
    }
    Show(*at, std::move(*text));
    return {};
  }

  // What the metadata says for the value.
  Result<std::string> ReadValue(std::string_view key) {
    ASSIGN_OR_RETURN(const GgufType type, ReadType("type"));
    if (key == kAlignmentKey) {
      if (type != GgufType::kU32) {
        return MakeError(Code::kCorrupt, "type: is {}, must be u32",
                         RowOf(type).name);
      }
      ASSIGN_OR_RETURN(alignment_, window_.Number<uint32_t>("value"));
      if (!std::has_single_bit(alignment_)) {
        return MakeError(Code::kCorrupt, "value: {} is no power of two",
                         alignment_);
      }
      return NumberText(alignment_);
    }
    if (type == GgufType::kArray) return ReadArray();
    if (type != GgufType::kString) return ReadScalar(type);
    ASSIGN_OR_RETURN(const uint64_t length, ReadLength("value"));
    ASSIGN_OR_RETURN(auto text, ReadShown(length));
    return text ? std::move(*text) : fmt::format("[{} bytes]", length);
  }

  Result<GgufType> ReadType(std::string_view field) {
    ASSIGN_OR_RETURN(const auto type, window_.Number<uint32_t>(field));
    if (type < kGgufTypes.size()) return GgufType{type};
    return MakeError(Code::kCorrupt, "{}: {} is not known", field, type);
  }

  Result<std::string> ReadScalar(GgufType type) {
    switch (type) {
      case GgufType::kU8:
        return ReadNumber<uint8_t>();
      case GgufType::kI8:
        return ReadNumber<int8_t>();
      case GgufType::kU16:
        return ReadNumber<uint16_t>();
      case GgufType::kI16:
        return ReadNumber<int16_t>();
      case GgufType::kU32:
        return ReadNumber<uint32_t>();
      case GgufType::kI32:
        return ReadNumber<int32_t>();
      case GgufType::kU64:
        return ReadNumber<uint64_t>();
      case GgufType::kI64:
        return ReadNumber<int64_t>();
      case GgufType::kF32:
        return ReadNumber<float>();
      case GgufType::kF64:
        return ReadNumber<double>();
      case GgufType::kBool: {
        // Any byte, as ggml takes it.
        ASSIGN_OR_RETURN(const auto byte, window_.Number<uint8_t>("value"));
        return std::string(byte != 0 ? "true" : "false");
      }
      case GgufType::kString:
      case GgufType::kArray:
        break;
    }
    return MakeError(Code::kInvalid, "value: is no scalar");
  }

  template <class T>
  Result<std::string> ReadNumber() {
    ASSIGN_OR_RETURN(const T value, window_.Number<T>("value"));
    return NumberText(value);
  }

  // The string if it can be shown; else it is skipped.
  Result<std::optional<std::string>> ReadShown(uint64_t length) {
    if (length > kMaxGgufShownString) {
      RETURN_IF_ERROR(window_.Skip("value", length));
      return std::optional<std::string>();
    }
    ASSIGN_OR_RETURN(const auto text, ReadText("value", length));
    if (!IsUtf8(text)) return std::optional<std::string>();
    return std::optional<std::string>(text);
  }

  Result<std::string> ReadArray() {
    ASSIGN_OR_RETURN(const GgufType type, ReadType("item type"));
    ASSIGN_OR_RETURN(const auto count, window_.Number<uint64_t>("item count"));
    if (type == GgufType::kArray) {
      return MakeError(Code::kUnsupported, "item type: arrays of arrays");
    }
    // A string takes at least its length.
    const uint64_t least =
        type == GgufType::kString ? sizeof(uint64_t) : RowOf(type).size;
    if (count > window_.remaining() / least) {
      return MakeError(Code::kCorrupt,
                       "item count: {} {} do not fit a file of {} bytes", count,
                       RowOf(type).name, source_.size());
    }
    const std::string note = fmt::format("[{} {}]", count, RowOf(type).name);
    if (type == GgufType::kString) return ReadStrings(count, note);
    if (count > kMaxGgufShownItems) {
      RETURN_IF_ERROR(window_.Skip("items", count * RowOf(type).size));
      return note;
    }
    std::string text = "[";
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(const std::string item, ReadScalar(type));
      text += (i == 0 ? "" : ",") + item;
    }
    return text + "]";
  }

  Result<std::string> ReadStrings(uint64_t count, const std::string& note) {
    bool shown = count <= kMaxGgufShownItems;
    std::string text = "[";
    const uint64_t begin = window_.offset();
    for (uint64_t i = 0; i < count; ++i) {
      if (i > 0) ExpectMore(count - i, (window_.offset() - begin) / i + 1);
      ASSIGN_OR_RETURN(const uint64_t length, ReadLength("item"));
      if (!shown) {
        RETURN_IF_ERROR(window_.Skip("item", length));
        continue;
      }
      ASSIGN_OR_RETURN(const auto item, ReadShown(length));
      shown = item && text.size() + item->size() <= kMaxGgufShownString;
      if (!shown) continue;
      if (i > 0) text += ',';
      AppendJsonString(*item, text);
    }
    return shown ? text + "]" : note;
  }

  // `count` strings of about `size` bytes are still to come, and then the rest
  // of the header.
  void ExpectMore(uint64_t count, uint64_t size) {
    const uint64_t bytes = count * size;
    window_.Expect(bytes + bytes / 8 + kGgufProbe);
  }

  // Adds to the metadata what there is room for.
  void Show(const std::string& key, std::string text) {
    const uint64_t size = key.size() + text.size();
    if (!IsUtf8(key) || size > kMaxGgufShown - shown_) return;
    shown_ += size;
    metadata_.emplace(key, std::move(text));
  }

  Result<> ReadTensor() {
    TensorInfo tensor;
    ASSIGN_OR_RETURN(tensor.name, ReadName("tensor name", kMaxGgufName));
    auto offset = ReadDescription(tensor);
    if (!offset.has_value()) {
      return std::move(offset.error())
          .AddContext(fmt::format("tensor {}", QuoteName(tensor.name)));
    }
    tensors_.push_back(std::move(tensor));
    places_.push_back(*offset);
    return {};
  }

  // Where a tensor lies, in bytes from the start of the data.
  struct Place {
    uint64_t begin = 0;
    uint64_t size = 0;
  };

  Result<Place> ReadDescription(TensorInfo& tensor) {
    ASSIGN_OR_RETURN(const auto rank, window_.Number<uint32_t>("rank"));
    if (rank > kMaxGgufDims) {
      return MakeError(Code::kUnsupported, "rank: {} dimensions, ggml has {}",
                       rank, kMaxGgufDims);
    }
    tensor.shape.resize(rank);
    for (uint32_t i = rank; i-- > 0;) {
      ASSIGN_OR_RETURN(tensor.shape[i], window_.Number<uint64_t>("shape"));
      if (tensor.shape[i] > std::numeric_limits<int64_t>::max()) {
        return MakeError(Code::kCorrupt, "shape: {} is negative in ggml",
                         tensor.shape[i]);
      }
    }
    ASSIGN_OR_RETURN(const auto type, window_.Number<uint32_t>("type"));
    ASSIGN_OR_RETURN(tensor.dtype, DTypeOfGgml(type));
    Place place;
    ASSIGN_OR_RETURN(place.begin, window_.Number<uint64_t>("offset"));
    if (place.begin % alignment_ != 0) {
      return MakeError(Code::kCorrupt, "offset: {} is no multiple of {}",
                       place.begin, alignment_);
    }
    auto size = DenseSize(tensor.dtype, tensor.shape);
    if (!size.has_value()) return std::move(size.error()).AddContext("shape");
    place.size = *size;
    return place;
  }

  // Checks the places against each other and the file, and fills in where the
  // data lies.
  Result<> PlaceTensors() {
    if (tensors_.empty()) return {};
    const uint64_t data_start = AlignUp(window_.offset(), alignment_);
    if (data_start > source_.size()) {
      return MakeError(Code::kCorrupt,
                       "data: begins at byte {}, the file has {}", data_start,
                       source_.size());
    }
    std::vector<uint32_t> order(tensors_.size());
    std::iota(order.begin(), order.end(), 0U);
    std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) {
      if (places_[a].begin != places_[b].begin) {
        return places_[a].begin < places_[b].begin;
      }
      if (places_[a].size != places_[b].size) {
        return places_[a].size < places_[b].size;
      }
      return a < b;
    });
    uint64_t end = 0;
    for (uint64_t i = 0; i < order.size(); ++i) {
      TensorInfo& tensor = tensors_[order[i]];
      const Place& place = places_[order[i]];
      if (!RangeFits(place.begin, place.size, source_.size() - data_start)) {
        return MakeError(Code::kCorrupt,
                         "tensor {}: offset: {} bytes at {} do not fit {} "
                         "bytes of data",
                         QuoteName(tensor.name), place.size, place.begin,
                         source_.size() - data_start);
      }
      tensor.order = i;
      tensor.storage_id = i;
      if (place.size == 0) continue;
      if (place.begin < end) {
        return MakeError(Code::kCorrupt,
                         "tensor {}: offset: begins at {}, the data before it "
                         "ends at {}",
                         QuoteName(tensor.name), place.begin, end);
      }
      end = place.begin + place.size;
      tensor.data.assign(1, {0, data_start + place.begin, place.size});
    }
    return {};
  }

  ByteSource& source_;
  ReadWindow window_;
  uint64_t tensor_count_ = 0;
  uint64_t pair_count_ = 0;
  uint32_t alignment_ = kDefaultAlignment;
  std::set<std::string> keys_;
  std::map<std::string, std::string> metadata_;
  uint64_t shown_ = 0;  // bytes of the metadata
  std::vector<TensorInfo> tensors_;
  std::vector<Place> places_;  // of tensors_[i]
};

}  // namespace

Result<TensorIndex> ReadGguf(ByteSource& source) {
  try {
    auto index = GgufParser(source).Parse();
    if (index.has_value()) return index;
    return std::move(index.error()).AddContext(source.name());
  } catch (const std::bad_alloc&) {
    return MakeError(Code::kNoSpace, "{}: no memory for the header",
                     source.name());
  }
}

}  // namespace weightfs
