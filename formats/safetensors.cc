#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "formats/base/byte_reader.h"
#include "formats/base/checked.h"
#include "formats/json_events.h"
#include "formats/text.h"
#include "formats/writer.h"

namespace weightfs {
namespace {

constexpr uint64_t kLengthSize = 8;  // the u64 before the header
constexpr std::string_view kMetadataKey = "__metadata__";

struct Offsets {
  uint64_t begin = 0;  // bytes from the start of the data
  uint64_t end = 0;
};

// What the header says, before the entries are held against each other.
struct Header {
  std::vector<TensorInfo> tensors;
  std::vector<Offsets> offsets;  // of tensors[i]
  std::map<std::string, std::string> metadata;
};

// Turns the events of a header into a Header. What the reference parser takes
// and this one does not: repeated names, repeated metadata keys, and a dtype
// written as {"F32": null}. (formats/safetensors.md lists it.)
class HeaderHandler final : public JsonHandler {
 public:
  Result<> Handle(const JsonEvent& event) override {
    auto result = Step(event);
    if (result.has_value() || !in_entry_) return result;
    return std::move(result.error())
        .AddContext(fmt::format("tensor {}", QuoteName(tensor_.name)));
  }
  Header& header() { return header_; }

 private:
  using Kind = JsonEvent::Kind;
  enum class State {
    kStart,
    kNames,          // in the header object, before a name or its end
    kMetadata,       // after "__metadata__":
    kMetaKey,        // in that object, before a key or its end
    kMetadataValue,  // after a key
    kEntry,          // after a tensor's name
    kField,          // in an entry's object, before a key or its end
    kDType,
    kShape,
    kDims,
    kOffsets,
    kOffset,
    kIgnored,   // the value of a field that the format does not know
    kArrayEnd,  // after the third item of an entry written as an array
  };
  enum Field : unsigned { kDTypeField = 1, kShapeField = 2, kOffsetsField = 4 };
  static constexpr unsigned kAllFields = 7;

  static Error Wrong(std::string_view field, std::string_view what) {
    return MakeError(Code::kCorrupt, "{}: {}", field, what);
  }

  Result<> Step(const JsonEvent& event) {
    switch (state_) {
      case State::kStart:
        if (event.kind != Kind::kBeginObject) {
          return Wrong("header", "is not an object");
        }
        state_ = State::kNames;
        return {};
      case State::kNames:
        return event.kind == Kind::kKey ? OnName(event) : Result<>();
      case State::kMetadata:
      case State::kMetaKey:
      case State::kMetadataValue:
        return OnMetadata(event);
      case State::kEntry:
        return OnEntry(event);
      case State::kField:
        return event.kind == Kind::kKey ? OnField(*event.text) : FinishEntry();
      case State::kDType:
        return OnDType(event);
      case State::kShape:
        return BeginList(event, "shape", State::kDims);
      case State::kDims:
        return OnDim(event);
      case State::kOffsets:
        return BeginList(event, "data_offsets", State::kOffset);
      case State::kOffset:
        return OnOffset(event);
      case State::kIgnored:
        return OnIgnored(event);
      case State::kArrayEnd:
        if (event.kind != Kind::kEndArray) {
          return Wrong("entry", "has more than three items");
        }
        return FinishEntry();
    }
    return Wrong("header", "is malformed");
  }

  Result<> OnName(const JsonEvent& event) {
    if (*event.text == kMetadataKey) {
      if (metadata_seen_) return Wrong(kMetadataKey, "comes twice");
      metadata_seen_ = true;
      state_ = State::kMetadata;
      return {};
    }
    RETURN_IF_ERROR(CountEntry());
    tensor_ = TensorInfo();
    tensor_.name = std::move(*event.text);
    offsets_.clear();
    in_entry_ = true;
    state_ = State::kEntry;
    return {};
  }

  Result<> CountEntry() {
    if (++entries_ <= kMaxSafetensorsEntries) return {};
    return MakeError(Code::kUnsupported, "header: more than {} entries",
                     kMaxSafetensorsEntries);
  }

  Result<> OnMetadata(const JsonEvent& event) {
    if (state_ == State::kMetadata) {
      if (event.kind == Kind::kNull) {
        state_ = State::kNames;
      } else if (event.kind == Kind::kBeginObject) {
        state_ = State::kMetaKey;
      } else {
        return Wrong(kMetadataKey, "is not an object");
      }
      return {};
    }
    if (state_ == State::kMetaKey) {
      if (event.kind == Kind::kEndObject) {
        state_ = State::kNames;
        return {};
      }
      RETURN_IF_ERROR(CountEntry());
      metadata_key_ = std::move(*event.text);
      state_ = State::kMetadataValue;
      return {};
    }
    if (event.kind != Kind::kString) {
      return Wrong(kMetadataKey, fmt::format("the value of {} is not a string",
                                             QuoteName(metadata_key_)));
    }
    const bool fresh =
        header_.metadata
            .emplace(std::move(metadata_key_), std::move(*event.text))
            .second;
    if (!fresh) return Wrong(kMetadataKey, "a key comes twice");
    state_ = State::kMetaKey;
    return {};
  }

  Result<> OnEntry(const JsonEvent& event) {
    fields_ = 0;
    array_form_ = event.kind == Kind::kBeginArray;
    if (array_form_) {
      state_ = State::kDType;
    } else if (event.kind == Kind::kBeginObject) {
      state_ = State::kField;
    } else {
      return Wrong("entry", "is neither an object nor an array");
    }
    return {};
  }

  Result<> OnField(std::string_view key) {
    unsigned field = 0;
    if (key == "dtype") {
      field = kDTypeField;
      state_ = State::kDType;
    } else if (key == "shape") {
      field = kShapeField;
      state_ = State::kShape;
    } else if (key == "data_offsets") {
      field = kOffsetsField;
      state_ = State::kOffsets;
    } else {
      ignored_depth_ = 0;
      state_ = State::kIgnored;
      return {};
    }
    if ((fields_ & field) != 0) return Wrong(key, "comes twice");
    return {};
  }

  void FinishField(Field field) {
    fields_ |= field;
    if (!array_form_) {
      state_ = State::kField;
    } else if (field == kDTypeField) {
      state_ = State::kShape;
    } else if (field == kShapeField) {
      state_ = State::kOffsets;
    } else {
      state_ = State::kArrayEnd;
    }
  }

  Result<> OnDType(const JsonEvent& event) {
    if (event.kind != Kind::kString) return Wrong("dtype", "is not a string");
    const auto dtype = DTypeFromName(*event.text);
    if (!dtype || !SafetensorsHolds(*dtype)) {
      return MakeError(Code::kUnsupported, "dtype: {} is not known",
                       QuoteName(*event.text));
    }
    tensor_.dtype = *dtype;
    FinishField(kDTypeField);
    return {};
  }

  Result<> BeginList(const JsonEvent& event, std::string_view field,
                     State items) {
    if (event.kind != Kind::kBeginArray) return Wrong(field, "is not an array");
    state_ = items;
    return {};
  }

  Result<> OnDim(const JsonEvent& event) {
    if (event.kind == Kind::kEndArray) {
      tensor_.shape.shrink_to_fit();
      FinishField(kShapeField);
      return {};
    }
    if (event.kind != Kind::kUnsigned) {
      return Wrong("shape", "holds something else than integers in [0, 2^64)");
    }
    if (++dims_ > kMaxSafetensorsDims) {
      return MakeError(Code::kUnsupported, "shape: more than {} dimensions",
                       kMaxSafetensorsDims);
    }
    tensor_.shape.push_back(event.number);
    return {};
  }

  Result<> OnOffset(const JsonEvent& event) {
    if (event.kind == Kind::kEndArray && offsets_.size() == 2) {
      FinishField(kOffsetsField);
      return {};
    }
    if (event.kind == Kind::kEndArray || offsets_.size() == 2) {
      return Wrong("data_offsets", "does not hold two items");
    }
    if (event.kind != Kind::kUnsigned) {
      return Wrong("data_offsets",
                   "holds something else than integers in [0, 2^64)");
    }
    offsets_.push_back(event.number);
    return {};
  }

  Result<> OnIgnored(const JsonEvent& event) {
    switch (event.kind) {
      case Kind::kBeginObject:
      case Kind::kBeginArray:
        ++ignored_depth_;
        break;
      case Kind::kEndObject:
      case Kind::kEndArray:
        --ignored_depth_;
        break;
      default:
        break;
    }
    if (ignored_depth_ == 0) state_ = State::kField;
    return {};
  }

  Result<> FinishEntry() {
    if (fields_ != kAllFields) {
      const std::string_view missing = (fields_ & kDTypeField) == 0 ? "dtype"
                                       : (fields_ & kShapeField) == 0
                                           ? "shape"
                                           : "data_offsets";
      return Wrong(missing, "is missing");
    }
    header_.offsets.push_back({offsets_[0], offsets_[1]});
    header_.tensors.push_back(std::move(tensor_));
    in_entry_ = false;
    state_ = State::kNames;
    return {};
  }

  State state_ = State::kStart;
  Header header_;
  uint64_t entries_ = 0;
  uint64_t dims_ = 0;  // of all tensors
  bool metadata_seen_ = false;
  std::string metadata_key_;

  // The entry that is being read.
  bool in_entry_ = false;
  bool array_form_ = false;
  unsigned fields_ = 0;
  int ignored_depth_ = 0;
  TensorInfo tensor_;
  std::vector<uint64_t> offsets_;
};

// The header's length N.
Result<uint64_t> ReadHeaderLength(std::span<const std::byte> head,
                                  uint64_t file_size) {
  ByteReader reader("safetensors", head);
  ASSIGN_OR_RETURN(const uint64_t length,
                   reader.Read<uint64_t>("header length"));
  if (length > kMaxSafetensorsHeader) {
    return MakeError(Code::kCorrupt,
                     "header length: {} bytes are more than the format's {}",
                     length, kMaxSafetensorsHeader);
  }
  if (!RangeFits(kLengthSize, length, file_size)) {
    return MakeError(Code::kCorrupt,
                     "header length: {} bytes at 8 do not fit a file of {}",
                     length, file_size);
  }
  return length;
}

// The header's text, by one read or two.
Result<std::string> ReadHeaderText(ByteSource& source) {
  std::string head(std::min(source.size(), kSafetensorsProbe), '\0');
  RETURN_IF_ERROR(source.ReadAt(0, std::as_writable_bytes(std::span(head))));
  ASSIGN_OR_RETURN(
      const uint64_t length,
      ReadHeaderLength(std::as_bytes(std::span(head)), source.size()));
  const size_t end = kLengthSize + length;
  if (end > head.size()) {
    const size_t have = head.size();
    head.resize(end);
    RETURN_IF_ERROR(source.ReadAt(
        have, std::as_writable_bytes(std::span(head)).subspan(have)));
  }
  head.resize(end);
  head.erase(0, kLengthSize);
  return head;
}

// Positions of the header's tensors by where their data lies; empty ones
// before the one that begins where they do, ties by name.
std::vector<uint32_t> DataOrder(const Header& header) {
  std::vector<uint32_t> order(header.tensors.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    const Offsets& x = header.offsets[a];
    const Offsets& y = header.offsets[b];
    if (x.begin != y.begin) return x.begin < y.begin;
    if (x.end != y.end) return x.end < y.end;
    return header.tensors[a].name < header.tensors[b].name;
  });
  return order;
}

Result<> CheckExtent(const TensorInfo& tensor, const Offsets& offsets,
                     uint64_t expected_begin) {
  if (offsets.end < offsets.begin) {
    return MakeError(Code::kCorrupt, "data_offsets: end {} before begin {}",
                     offsets.end, offsets.begin);
  }
  if (offsets.begin != expected_begin) {
    return MakeError(Code::kCorrupt,
                     "data_offsets: begins at {}, the data before it ends at "
                     "{} ({})",
                     offsets.begin, expected_begin,
                     offsets.begin > expected_begin ? "hole" : "overlap");
  }
  auto size = DenseSize(tensor.dtype, tensor.shape);
  if (!size.has_value()) {
    return std::move(size.error()).AddContext("shape");
  }
  if (*size != offsets.end - offsets.begin) {
    return MakeError(
        Code::kCorrupt,
        "data_offsets: {} bytes, but the shape holds {} bytes of {}",
        offsets.end - offsets.begin, *size, DTypeName(tensor.dtype));
  }
  return {};
}

// Checks the entries against each other and the file, and fills in where the
// data lies. `data_start` is the file offset that data_offsets count from.
Result<> PlaceTensors(Header& header, uint64_t data_start, uint64_t file_size) {
  uint64_t end = 0;
  uint64_t order = 0;
  for (const uint32_t i : DataOrder(header)) {
    TensorInfo& tensor = header.tensors[i];
    const Offsets& offsets = header.offsets[i];
    auto extent = CheckExtent(tensor, offsets, end);
    if (!extent.has_value()) {
      return std::move(extent.error())
          .AddContext(fmt::format("tensor {}", QuoteName(tensor.name)));
    }
    if (!RangeFits(data_start, offsets.end, file_size)) {
      return MakeError(
          Code::kCorrupt,
          "tensor {}: data_offsets: ends at {}, the file's data at {}",
          QuoteName(tensor.name), offsets.end, file_size - data_start);
    }
    const uint64_t length = offsets.end - offsets.begin;
    if (length > 0) {
      tensor.data.assign(1, {0, data_start + offsets.begin, length});
    }
    tensor.order = order;
    tensor.storage_id = order;
    ++order;
    end = offsets.end;
  }
  if (end != file_size - data_start) {
    return MakeError(Code::kCorrupt,
                     "data: {} bytes from {} on, but the tensors take {} bytes",
                     file_size - data_start, data_start, end);
  }
  return {};
}

Result<TensorIndex> ParseSafetensors(ByteSource& source) {
  HeaderHandler handler;
  uint64_t data_start = 0;
  {
    ASSIGN_OR_RETURN(const std::string text, ReadHeaderText(source));
    data_start = kLengthSize + text.size();
    RETURN_IF_ERROR(ParseJson(text, kLengthSize, handler));
  }
  Header& header = handler.header();
  RETURN_IF_ERROR(PlaceTensors(header, data_start, source.size()));
  return TensorIndex::Create({source.name()}, std::move(header.tensors),
                             std::move(header.metadata));
}

}  // namespace

// The format's 22 are the first in the enum.
bool SafetensorsHolds(DType dtype) { return dtype <= DType::kU64; }

Result<uint64_t> SafetensorsHeaderEnd(ByteSource& source) {
  std::array<std::byte, kLengthSize> start{};
  const auto bytes =
      std::span(start).first(std::min<uint64_t>(source.size(), start.size()));
  RETURN_IF_ERROR(source.ReadAt(0, bytes));
  ASSIGN_OR_RETURN(const uint64_t length,
                   ReadHeaderLength(bytes, source.size()));
  return kLengthSize + length;
}

Result<TensorIndex> ReadSafetensors(ByteSource& source) {
  try {
    auto index = ParseSafetensors(source);
    if (index.has_value()) return index;
    return std::move(index.error()).AddContext(source.name());
  } catch (const std::bad_alloc&) {
    return MakeError(Code::kNoSpace, "{}: no memory for the header",
                     source.name());
  }
}

Result<std::vector<Segment>> WriteSafetensors(const TensorInfo& tensor) {
  RETURN_IF_ERROR(CheckFormatHolds(Format::kSafetensors, tensor.dtype));
  if (!IsUtf8(tensor.name) || tensor.name == kMetadataKey) {
    return MakeError(Code::kUnsupported,
                     "safetensors has no way to hold the name {}",
                     QuoteName(tensor.name));
  }
  ASSIGN_OR_RETURN(const uint64_t size, DenseSize(tensor.dtype, tensor.shape));
  ASSIGN_OR_RETURN(auto data, DenseSegments(tensor));
  std::string header = R"({"__metadata__":{"format":"pt"},)";
  AppendJsonString(tensor.name, header);
  header +=
      fmt::format(R"(:{{"dtype":"{}","shape":[{}],"data_offsets":[0,{}]}}}})",
                  DTypeName(tensor.dtype), fmt::join(tensor.shape, ","), size);
  header.resize(AlignUp(header.size(), 8), ' ');
  if (header.size() > kMaxSafetensorsHeader) {
    return MakeError(Code::kUnsupported,
                     "the safetensors header would have {} bytes",
                     header.size());
  }
  const uint64_t length = header.size();
  std::array<char, kLengthSize> prefix{};
  std::memcpy(prefix.data(), &length, sizeof(length));
  header.insert(0, prefix.data(), prefix.size());

  std::vector<Segment> segments;
  segments.push_back(Literal(std::move(header)));
  segments.insert(segments.end(), data.begin(), data.end());
  return segments;
}

}  // namespace weightfs
