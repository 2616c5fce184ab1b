#include "formats/pickle.h"

#include <array>
#include <bit>
#include <utility>

#include "formats/pickle_machine.h"

namespace weightfs {

const Pickle::Machine::Opcode* Pickle::Machine::FindOpcode(uint8_t code) {
  using M = Machine;
  using K = Kind;
  static constexpr std::array<Opcode, 68> kOpcodes = {{
      {'(', "MARK", &M::Mark},
      {'.', "STOP", &M::Stop},
      {'0', "POP", &M::PopOne},
      {'1', "POP_MARK", &M::PopMark},
      {'2', "DUP", &M::Dup},
      {'F', "FLOAT", &M::FloatLine},
      {'I', "INT", &M::IntLine},
      {'J', "BININT", &M::Int<int32_t>},
      {'K', "BININT1", &M::Int<uint8_t>},
      {'L', "LONG", &M::LongLine},
      {'M', "BININT2", &M::Int<uint16_t>},
      {'N', "NONE", &M::None},
      {'P', "PERSID", &M::PersistentLine},
      {'Q', "BINPERSID", &M::Persistent},
      {'R', "REDUCE", &M::Call<K::kCall>},
      {'S', "STRING", &M::QuotedLine},
      {'T', "BINSTRING", &M::Counted<uint32_t, K::kString>},
      {'U', "SHORT_BINSTRING", &M::Counted<uint8_t, K::kString>},
      {'V', "UNICODE", &M::UnicodeLine},
      {'X', "BINUNICODE", &M::Counted<uint32_t, K::kString>},
      {'a', "APPEND", &M::Append},
      {'b', "BUILD", &M::Build},
      {'c', "GLOBAL", &M::Global},
      {'d', "DICT", &M::Marked<K::kDict>},
      {'}', "EMPTY_DICT", &M::Empty<K::kDict>},
      {'e', "APPENDS", &M::Appends},
      {'g', "GET", &M::GetLine},
      {'h', "BINGET", &M::Get<uint8_t>},
      {'i', "INST", &M::Inst},
      {'j', "LONG_BINGET", &M::Get<uint32_t>},
      {'l', "LIST", &M::Marked<K::kList>},
      {']', "EMPTY_LIST", &M::Empty<K::kList>},
      {'o', "OBJ", &M::Obj},
      {'p', "PUT", &M::PutLine},
      {'q', "BINPUT", &M::Put<uint8_t>},
      {'r', "LONG_BINPUT", &M::Put<uint32_t>},
      {'s', "SETITEM", &M::SetItem},
      {'t', "TUPLE", &M::MarkedTuple},
      {')', "EMPTY_TUPLE", &M::EmptyTuple},
      {'u', "SETITEMS", &M::SetItems},
      {'G', "BINFLOAT", &M::Float},
      {0x80, "PROTO", &M::Proto},
      {0x81, "NEWOBJ", &M::Call<K::kObject>},
      {0x82, "EXT1", &M::Extension<uint8_t>},
      {0x83, "EXT2", &M::Extension<uint16_t>},
      {0x84, "EXT4", &M::Extension<uint32_t>},
      {0x85, "TUPLE1", &M::Tuple<1>},
      {0x86, "TUPLE2", &M::Tuple<2>},
      {0x87, "TUPLE3", &M::Tuple<3>},
      {0x88, "NEWTRUE", &M::Bool<1>},
      {0x89, "NEWFALSE", &M::Bool<0>},
      {0x8a, "LONG1", &M::Long<uint8_t>},
      {0x8b, "LONG4", &M::Long<uint32_t>},
      {'B', "BINBYTES", &M::Counted<uint32_t, K::kBytes>},
      {'C', "SHORT_BINBYTES", &M::Counted<uint8_t, K::kBytes>},
      {0x8c, "SHORT_BINUNICODE", &M::Counted<uint8_t, K::kString>},
      {0x8d, "BINUNICODE8", &M::Counted<uint64_t, K::kString>},
      {0x8e, "BINBYTES8", &M::Counted<uint64_t, K::kBytes>},
      {0x8f, "EMPTY_SET", &M::Empty<K::kSet>},
      {0x90, "ADDITEMS", &M::AddItems},
      {0x91, "FROZENSET", &M::Marked<K::kSet>},
      {0x92, "NEWOBJ_EX", &M::NewObjectEx},
      {0x93, "STACK_GLOBAL", &M::StackGlobal},
      {0x94, "MEMOIZE", &M::Memoize},
      {0x95, "FRAME", &M::Frame},
      {0x96, "BYTEARRAY8", &M::Counted<uint64_t, K::kBytes>},
      {0x97, "NEXT_BUFFER", &M::Refuse},
      {0x98, "READONLY_BUFFER", &M::Nothing},
  }};
  for (const Opcode& opcode : kOpcodes) {
    if (opcode.code == code) return &opcode;
  }
  return nullptr;
}

Result<> Pickle::Machine::Run() {
  std::array<const Opcode*, 256> opcodes{};
  for (size_t code = 0; code < opcodes.size(); ++code) {
    opcodes[code] = FindOpcode(static_cast<uint8_t>(code));
  }
  while (!stopped_) {
    at_ = reader_.offset();
    const auto code = reader_.Read<uint8_t>("the next opcode");
    if (!code.has_value()) {
      cut_ = true;
      return code.error();
    }
    opcode_ = opcodes.at(*code);
    if (opcode_ == nullptr) {
      return MakeError(Code::kCorrupt,
                       "pickle: no opcode is 0x{:02x}, at offset {}", *code,
                       at_);
    }
    RETURN_IF_ERROR((this->*opcode_->run)());
  }
  pickle_.size_ = reader_.offset();
  return {};
}

Result<std::optional<Pickle>> Pickle::ParsePrefix(std::string_view bytes) {
  Machine machine(bytes.substr(0, kMaxPickleSize));
  auto done = machine.Run();
  if (done.has_value()) return std::optional(std::move(machine).Take());
  if (!machine.cut()) return std::move(done).error();
  if (bytes.size() < kMaxPickleSize) return std::optional<Pickle>();
  return MakeError(Code::kUnsupported, "pickle: more than {} bytes",
                   kMaxPickleSize);
}

Result<Pickle> Pickle::Parse(std::string_view bytes) {
  ASSIGN_OR_RETURN(auto pickle, ParsePrefix(bytes));
  if (pickle) return std::move(*pickle);
  return MakeError(Code::kCorrupt, "pickle: {} bytes end before it does",
                   bytes.size());
}

int64_t Pickle::Int(Ref ref) const {
  const Node& node = nodes_[ref];
  return static_cast<int64_t>(uint64_t{node.b} << 32 | node.a);
}

double Pickle::Float(Ref ref) const {
  return std::bit_cast<double>(static_cast<uint64_t>(Int(ref)));
}

std::string_view Pickle::Text(Ref ref) const {
  const Node& node = nodes_[ref];
  const std::string_view from = node.c == 1 ? decoded_ : bytes_;
  return from.substr(node.a, node.b);
}

const Pickle::Extra* Pickle::ExtraOf(Ref ref) const {
  const Node& node = nodes_[ref];
  const bool made = node.kind == Kind::kCall || node.kind == Kind::kObject;
  return made && node.c != kNoRef ? &extras_[node.c] : nullptr;
}

std::span<const Pickle::Ref> Pickle::Items(Ref ref) const {
  const Node& node = nodes_[ref];
  switch (node.kind) {
    case Kind::kTuple:
      return std::span(children_).subspan(node.a, node.b);
    case Kind::kList:
    case Kind::kDict:
    case Kind::kSet:
      return lists_[node.a];
    default:
      break;
  }
  const Extra* extra = ExtraOf(ref);
  if (extra == nullptr) return {};
  return extra->items;
}

std::span<const Pickle::Ref> Pickle::Appended(Ref ref) const {
  const Extra* extra = ExtraOf(ref);
  if (extra == nullptr) return {};
  return extra->appended;
}

Pickle::Ref Pickle::State(Ref ref) const {
  const Extra* extra = ExtraOf(ref);
  return extra == nullptr ? kNoRef : extra->state;
}

bool Pickle::IsGlobal(Ref ref, std::string_view module,
                      std::string_view name) const {
  return kind(ref) == Kind::kGlobal && Module(ref) == module &&
         Name(ref) == name;
}

bool Pickle::IsText(Ref ref, std::string_view text) const {
  return kind(ref) == Kind::kString && Text(ref) == text;
}

}  // namespace weightfs
