#include "formats/pickle_machine.h"

#include <bit>
#include <charconv>
#include <optional>
#include <string>
#include <system_error>

namespace weightfs {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The value of `digits` hexadecimal digits at the front of `text`.
std::optional<uint32_t> HexNumber(std::string_view text, size_t digits) {
  if (text.size() < digits) return std::nullopt;
  uint32_t value = 0;
  for (size_t i = 0; i < digits; ++i) {
    const int digit = HexDigit(text[i]);
    if (digit < 0) return std::nullopt;
    value = value << 4 | static_cast<uint32_t>(digit);
  }
  return value;
}

void AppendUtf8(uint32_t point, std::string& out) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xc0 | point >> 6);
    put(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    put(0xe0 | point >> 12);
    put(0x80 | (point >> 6 & 0x3f));
    put(0x80 | (point & 0x3f));
  } else {
    put(0xf0 | (point >> 18 & 7));
    put(0x80 | (point >> 12 & 0x3f));
    put(0x80 | (point >> 6 & 0x3f));
    put(0x80 | (point & 0x3f));
  }
}

// The text of STRING: Python's repr of bytes, in quotes. Escapes that are not
// known stand for themselves.
void AppendUnquoted(std::string_view text, std::string& out) {
  constexpr std::string_view kLetters = "\\'\"abfnrtv";
  constexpr std::string_view kMeaning = "\\'\"\a\b\f\n\r\t\v";
  while (!text.empty()) {
    const char c = text.front();
    text.remove_prefix(1);
    if (c != '\\' || text.empty()) {
      out += c;
      continue;
    }
    const size_t letter = kLetters.find(text.front());
    const auto hex =
        text.front() == 'x' ? HexNumber(text.substr(1), 2) : std::nullopt;
    if (letter != std::string_view::npos) {
      out += kMeaning[letter];
      text.remove_prefix(1);
    } else if (hex) {
      out += static_cast<char>(*hex);
      text.remove_prefix(3);
    } else {
      out += c;
    }
  }
}

// The text of UNICODE: Latin-1 with \uXXXX and \UXXXXXXXX.
void AppendRawUnicode(std::string_view text, std::string& out) {
  while (!text.empty()) {
    size_t digits = 0;
    if (text.starts_with("\\u")) digits = 4;
    if (text.starts_with("\\U")) digits = 8;
    const auto point =
        digits > 0 ? HexNumber(text.substr(2), digits) : std::nullopt;
    if (point) {
      AppendUtf8(*point, out);
      text.remove_prefix(2 + digits);
    } else {
      AppendUtf8(static_cast<unsigned char>(text.front()), out);
      text.remove_prefix(1);
    }
  }
}

}  // namespace

Result<std::string_view> Pickle::Machine::Line() {
  const size_t begin = reader_.offset();
  const size_t end = bytes_.find('\n', begin);
  if (end == std::string_view::npos) {
    cut_ = true;
    return Wrong(Code::kCorrupt, "the line that follows has no end");
  }
  ASSIGN_OR_RETURN(std::string_view line, Bytes(end - begin + 1));
  line.remove_suffix(1);
  return line;
}

Result<size_t> Pickle::Machine::DecimalLine() {
  ASSIGN_OR_RETURN(const std::string_view line, Line());
  size_t value = 0;
  const auto [end, error] =
      std::from_chars(line.data(), line.data() + line.size(), value);
  if (error != std::errc() || end != line.data() + line.size()) {
    return Wrong(Code::kCorrupt, "no number follows");
  }
  return value;
}

Result<Pickle::Ref> Pickle::Machine::Add(Node node) {
  if (pickle_.nodes_.size() >= kMaxPickleNodes) {
    return Wrong(Code::kUnsupported, "more than {} values", kMaxPickleNodes);
  }
  pickle_.nodes_.push_back(node);
  return static_cast<Ref>(pickle_.nodes_.size() - 1);
}

// `text` lies in bytes_.
Result<Pickle::Ref> Pickle::Machine::AddText(Kind kind, std::string_view text) {
  const size_t offset = static_cast<size_t>(text.data() - bytes_.data());
  return Add({kind, static_cast<uint32_t>(offset),
              static_cast<uint32_t>(text.size()), 0});
}

// The text that decoded_ holds from `begin` on.
Result<Pickle::Ref> Pickle::Machine::AddDecoded(size_t begin) {
  const size_t length = pickle_.decoded_.size() - begin;
  return Add({Kind::kString, static_cast<uint32_t>(begin),
              static_cast<uint32_t>(length), 1});
}

Result<Pickle::Ref> Pickle::Machine::AddInt(int64_t value) {
  const auto bits = static_cast<uint64_t>(value);
  const Node node{Kind::kInt, static_cast<uint32_t>(bits),
                  static_cast<uint32_t>(bits >> 32), 0};
  if (bits >= small_ints_.size()) return Add(node);
  Ref& known = small_ints_[bits];
  if (known == kNoRef) {
    ASSIGN_OR_RETURN(known, Add(node));
  }
  return known;
}

Result<> Pickle::Machine::CountItems(size_t count) {
  items_ += count;
  if (items_ <= kMaxPickleItems) return {};
  return Wrong(Code::kUnsupported, "more than {} items", kMaxPickleItems);
}

Result<Pickle::Ref> Pickle::Machine::AddTuple(std::span<const Ref> items) {
  RETURN_IF_ERROR(CountItems(items.size()));
  const size_t begin = pickle_.children_.size();
  pickle_.children_.insert(pickle_.children_.end(), items.begin(), items.end());
  return Add({Kind::kTuple, static_cast<uint32_t>(begin),
              static_cast<uint32_t>(items.size()), 0});
}

Result<> Pickle::Machine::Push(Ref ref) {
  if (stack_.size() >= kMaxPickleItems) {
    return Wrong(Code::kUnsupported, "more than {} values on the stack",
                 kMaxPickleItems);
  }
  stack_.push_back(ref);
  return {};
}

Result<> Pickle::Machine::PushNew(Result<Ref> made) {
  if (!made.has_value()) return std::move(made).error();
  return Push(*made);
}

Result<Pickle::Ref> Pickle::Machine::Top() const {
  if (stack_.size() > Fence()) return stack_.back();
  return Wrong(Code::kCorrupt, "the stack is empty");
}

Result<Pickle::Ref> Pickle::Machine::Pop() {
  ASSIGN_OR_RETURN(const Ref top, Top());
  stack_.pop_back();
  return top;
}

Result<std::vector<Pickle::Ref>> Pickle::Machine::PopToMark() {
  if (marks_.empty()) return Wrong(Code::kCorrupt, "no MARK is on the stack");
  const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(Fence());
  std::vector<Ref> items(begin, stack_.end());
  stack_.erase(begin, stack_.end());
  marks_.pop_back();
  return items;
}

Pickle::Extra& Pickle::Machine::ExtraOf(Ref ref) {
  Node& node = pickle_.nodes_[ref];
  if (node.c == kNoRef) {
    node.c = static_cast<uint32_t>(pickle_.extras_.size());
    pickle_.extras_.emplace_back();
  }
  return pickle_.extras_[node.c];
}

Result<> Pickle::Machine::Proto() {
  ASSIGN_OR_RETURN(const uint8_t protocol, Number<uint8_t>());
  if (protocol <= 5) return {};
  return Wrong(Code::kUnsupported, "protocol {} is not known", protocol);
}

// How the pickler cut its output; only of use to readers of streams.
Result<> Pickle::Machine::Frame() {
  RETURN_IF_ERROR(Number<uint64_t>());
  return {};
}

Result<> Pickle::Machine::Stop() {
  ASSIGN_OR_RETURN(pickle_.root_, Pop());
  stopped_ = true;
  return {};
}

Result<> Pickle::Machine::IntLine() {
  ASSIGN_OR_RETURN(const std::string_view line, Line());
  if (line == "00" || line == "01") {
    return PushNew(Add({Kind::kBool, line == "01" ? 1U : 0U}));
  }
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(line.data(), line.data() + line.size(), value);
  if (error != std::errc() || end != line.data() + line.size()) {
    return Wrong(Code::kCorrupt, "no number follows");
  }
  return PushNew(AddInt(value));
}

Result<> Pickle::Machine::LongLine() {
  ASSIGN_OR_RETURN(std::string_view line, Line());
  if (line.ends_with('L')) line.remove_suffix(1);
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(line.data(), line.data() + line.size(), value);
  if (error == std::errc::result_out_of_range) {
    return PushNew(Add({Kind::kOpaque}));
  }
  if (error != std::errc() || end != line.data() + line.size()) {
    return Wrong(Code::kCorrupt, "no number follows");
  }
  return PushNew(AddInt(value));
}

template <class Length>
Result<> Pickle::Machine::Long() {
  ASSIGN_OR_RETURN(const Length length, Number<Length>());
  ASSIGN_OR_RETURN(const std::string_view text, Bytes(length));
  if (text.size() > sizeof(int64_t)) {
    return PushNew(AddText(Kind::kBigInt, text));
  }
  const bool negative =
      !text.empty() && (static_cast<unsigned char>(text.back()) & 0x80) != 0;
  uint64_t value = negative ? ~uint64_t{0} : 0;
  for (size_t i = text.size(); i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(text[i]);
  }
  return PushNew(AddInt(static_cast<int64_t>(value)));
}

Result<> Pickle::Machine::Float() {
  ASSIGN_OR_RETURN(const std::string_view text, Bytes(sizeof(double)));
  uint64_t bits = 0;  // big-endian
  for (const char c : text) {
    bits = bits << 8 | static_cast<unsigned char>(c);
  }
  return PushNew(Add({Kind::kFloat, static_cast<uint32_t>(bits),
                      static_cast<uint32_t>(bits >> 32), 0}));
}

Result<> Pickle::Machine::FloatLine() {
  ASSIGN_OR_RETURN(const std::string_view line, Line());
  double value = 0;
  const auto [end, error] =
      std::from_chars(line.data(), line.data() + line.size(), value);
  if (error != std::errc() || end != line.data() + line.size()) {
    return Wrong(Code::kCorrupt, "no number follows");
  }
  const auto bits = std::bit_cast<uint64_t>(value);
  return PushNew(Add({Kind::kFloat, static_cast<uint32_t>(bits),
                      static_cast<uint32_t>(bits >> 32), 0}));
}

Result<> Pickle::Machine::QuotedLine() {
  ASSIGN_OR_RETURN(std::string_view line, Line());
  if (line.size() < 2 || (line.front() != '\'' && line.front() != '"') ||
      line.front() != line.back()) {
    return Wrong(Code::kCorrupt, "no text in quotes follows");
  }
  line = line.substr(1, line.size() - 2);
  const size_t begin = pickle_.decoded_.size();
  AppendUnquoted(line, pickle_.decoded_);
  return PushNew(AddDecoded(begin));
}

Result<> Pickle::Machine::UnicodeLine() {
  ASSIGN_OR_RETURN(const std::string_view line, Line());
  const size_t begin = pickle_.decoded_.size();
  AppendRawUnicode(line, pickle_.decoded_);
  return PushNew(AddDecoded(begin));
}

template <Pickle::Kind kKind>
Result<> Pickle::Machine::Empty() {
  const size_t list = pickle_.lists_.size();
  RETURN_IF_ERROR(PushNew(Add({kKind, static_cast<uint32_t>(list)})));
  pickle_.lists_.emplace_back();
  return {};
}

template <size_t kCount>
Result<> Pickle::Machine::Tuple() {
  std::array<Ref, kCount> items{};
  for (size_t i = kCount; i-- > 0;) {
    ASSIGN_OR_RETURN(items[i], Pop());
  }
  return PushNew(AddTuple(items));
}

Result<> Pickle::Machine::MarkedTuple() {
  ASSIGN_OR_RETURN(const auto items, PopToMark());
  return PushNew(AddTuple(items));
}

template <Pickle::Kind kKind>
Result<> Pickle::Machine::Marked() {
  ASSIGN_OR_RETURN(const auto items, PopToMark());
  RETURN_IF_ERROR(Empty<kKind>());
  return kKind == Kind::kDict ? SetIn(items) : AppendTo(items);
}

// Into what is on top of the stack.
Result<> Pickle::Machine::AppendTo(std::span<const Ref> items) {
  ASSIGN_OR_RETURN(const Ref target, Top());
  RETURN_IF_ERROR(CountItems(items.size()));
  std::vector<Ref>* list = nullptr;
  switch (pickle_.kind(target)) {
    case Kind::kList:
    case Kind::kSet:
      list = &pickle_.lists_[pickle_.nodes_[target].a];
      break;
    case Kind::kCall:
    case Kind::kObject:
      list = &ExtraOf(target).appended;
      break;
    default:
      return Wrong(Code::kCorrupt, "there is no list to append to");
  }
  list->insert(list->end(), items.begin(), items.end());
  return {};
}

Result<> Pickle::Machine::SetIn(std::span<const Ref> items) {
  ASSIGN_OR_RETURN(const Ref target, Top());
  RETURN_IF_ERROR(CountItems(items.size()));
  if (items.size() % 2 != 0) {
    return Wrong(Code::kCorrupt, "a key has no value");
  }
  std::vector<Ref>* list = nullptr;
  switch (pickle_.kind(target)) {
    case Kind::kDict:
      list = &pickle_.lists_[pickle_.nodes_[target].a];
      break;
    case Kind::kCall:
    case Kind::kObject:
      list = &ExtraOf(target).items;
      break;
    default:
      return Wrong(Code::kCorrupt, "there is no dict to set in");
  }
  list->insert(list->end(), items.begin(), items.end());
  return {};
}

Result<> Pickle::Machine::Append() {
  ASSIGN_OR_RETURN(const Ref item, Pop());
  return AppendTo({&item, 1});
}

Result<> Pickle::Machine::Appends() {
  ASSIGN_OR_RETURN(const auto items, PopToMark());
  return AppendTo(items);
}

Result<> Pickle::Machine::SetItem() {
  std::array<Ref, 2> pair{};
  ASSIGN_OR_RETURN(pair[1], Pop());
  ASSIGN_OR_RETURN(pair[0], Pop());
  return SetIn(pair);
}

Result<> Pickle::Machine::SetItems() {
  ASSIGN_OR_RETURN(const auto items, PopToMark());
  return SetIn(items);
}

Result<> Pickle::Machine::Mark() {
  if (marks_.size() >= kMaxPickleMarks) {
    return Wrong(Code::kUnsupported, "more than {} levels", kMaxPickleMarks);
  }
  marks_.push_back(stack_.size());
  return {};
}

Result<> Pickle::Machine::PopOne() {
  if (stack_.size() == Fence() && !marks_.empty()) {
    marks_.pop_back();
    return {};
  }
  RETURN_IF_ERROR(Pop());
  return {};
}

Result<> Pickle::Machine::Dup() {
  ASSIGN_OR_RETURN(const Ref top, Top());
  return Push(top);
}

Result<> Pickle::Machine::PutAt(size_t index) {
  ASSIGN_OR_RETURN(const Ref top, Top());
  if (index >= kMaxPickleMemo) {
    return Wrong(Code::kUnsupported, "memo index {} is over {}", index,
                 kMaxPickleMemo - 1);
  }
  if (index >= memo_.size()) memo_.resize(index + 1, kNoRef);
  if (memo_[index] == kNoRef) ++memo_count_;
  memo_[index] = top;
  return {};
}

Result<> Pickle::Machine::GetAt(size_t index) {
  if (index >= memo_.size() || memo_[index] == kNoRef) {
    return Wrong(Code::kCorrupt, "nothing is in the memo at {}", index);
  }
  return Push(memo_[index]);
}

Result<Pickle::Ref> Pickle::Machine::AddGlobal(Ref module, Ref name) {
  if (pickle_.kind(module) != Kind::kString ||
      pickle_.kind(name) != Kind::kString) {
    return Wrong(Code::kCorrupt, "module and name are no strings");
  }
  return Add({Kind::kGlobal, module, name, 0});
}

Result<Pickle::Ref> Pickle::Machine::GlobalLines() {
  ASSIGN_OR_RETURN(const std::string_view module_text, Line());
  ASSIGN_OR_RETURN(const std::string_view name_text, Line());
  ASSIGN_OR_RETURN(const Ref module, AddText(Kind::kString, module_text));
  ASSIGN_OR_RETURN(const Ref name, AddText(Kind::kString, name_text));
  return AddGlobal(module, name);
}

Result<> Pickle::Machine::StackGlobal() {
  ASSIGN_OR_RETURN(const Ref name, Pop());
  ASSIGN_OR_RETURN(const Ref module, Pop());
  return PushNew(AddGlobal(module, name));
}

template <Pickle::Kind kKind>
Result<> Pickle::Machine::Call() {
  ASSIGN_OR_RETURN(const Ref args, Pop());
  ASSIGN_OR_RETURN(const Ref callable, Pop());
  return PushNew(Add({kKind, callable, args, kNoRef}));
}

Result<> Pickle::Machine::NewObjectEx() {
  RETURN_IF_ERROR(Pop());  // keyword arguments
  return Call<Kind::kObject>();
}

Result<> Pickle::Machine::Inst() {
  ASSIGN_OR_RETURN(const auto items, PopToMark());
  ASSIGN_OR_RETURN(const Ref callable, GlobalLines());
  ASSIGN_OR_RETURN(const Ref args, AddTuple(items));
  return PushNew(Add({Kind::kObject, callable, args, kNoRef}));
}

Result<> Pickle::Machine::Obj() {
  ASSIGN_OR_RETURN(const auto items, PopToMark());
  if (items.empty()) return Wrong(Code::kCorrupt, "there is no class");
  ASSIGN_OR_RETURN(const Ref args, AddTuple(std::span(items).subspan(1)));
  return PushNew(Add({Kind::kObject, items[0], args, kNoRef}));
}

Result<> Pickle::Machine::Build() {
  ASSIGN_OR_RETURN(const Ref state, Pop());
  ASSIGN_OR_RETURN(const Ref target, Top());
  const Kind kind = pickle_.kind(target);
  if (kind != Kind::kCall && kind != Kind::kObject) {
    return Wrong(Code::kCorrupt, "there is no object to give a state to");
  }
  ExtraOf(target).state = state;
  return {};
}

Result<> Pickle::Machine::PersistentLine() {
  ASSIGN_OR_RETURN(const std::string_view line, Line());
  ASSIGN_OR_RETURN(const Ref id, AddText(Kind::kString, line));
  return PushNew(Add({Kind::kPersistent, id}));
}

Result<> Pickle::Machine::Persistent() {
  ASSIGN_OR_RETURN(const Ref id, Pop());
  return PushNew(Add({Kind::kPersistent, id}));
}

// Those that the table names.
template Result<> Pickle::Machine::Long<uint8_t>();
template Result<> Pickle::Machine::Long<uint32_t>();
template Result<> Pickle::Machine::Empty<Pickle::Kind::kList>();
template Result<> Pickle::Machine::Empty<Pickle::Kind::kDict>();
template Result<> Pickle::Machine::Empty<Pickle::Kind::kSet>();
template Result<> Pickle::Machine::Tuple<1>();
template Result<> Pickle::Machine::Tuple<2>();
template Result<> Pickle::Machine::Tuple<3>();
template Result<> Pickle::Machine::Marked<Pickle::Kind::kList>();
template Result<> Pickle::Machine::Marked<Pickle::Kind::kDict>();
template Result<> Pickle::Machine::Marked<Pickle::Kind::kSet>();
template Result<> Pickle::Machine::Call<Pickle::Kind::kCall>();
template Result<> Pickle::Machine::Call<Pickle::Kind::kObject>();

}  // namespace weightfs
