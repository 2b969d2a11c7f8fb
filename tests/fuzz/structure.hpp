// SPDX-License-Identifier: Apache-2.0
// Files taken apart into their fields, changed, and put together again with sizes and checksums that
// fit: so that what is behind these is reached. docs/format.md says what the fields are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

extern "C" {
#include "internal.h"
}

namespace structure {

struct Tensor {
    std::string name;
    uint64_t dtype = 1, kind = 0, reason = 0, target = 0, tile = 1, rank = 0, scale = 0x3F800000, snr = 0;
    uint64_t trellis = 0, codebook_start = 128, latent_start = 128, slice = 0;
    std::vector<uint64_t> lengths;

    bool unfactored() const { return kind == TERSOR_EXACT || kind == TERSOR_ROUNDED; }
};

// The content of a group is inflated, if it could be.
struct Section {
    std::string content;
    bool plain = false;
};

struct File {
    uint64_t source = 0;
    std::vector<Tensor> tensors;
    std::vector<Section> sections;
    std::string tail;  // without its checksum
};

constexpr uint64_t MOST_BYTES = 1 << 16, MOST_SECTIONS = 64;

inline uint64_t saturated(uint64_t a, uint64_t b) { return b && a > UINT64_MAX / b ? UINT64_MAX : a * b; }

// Bytes of each section that groups need, behind the sections of factors; how many these are comes first.
inline std::vector<uint64_t> groups(const File& file, uint64_t& slices) {
    std::vector<uint64_t> sizes;
    slices = 0;
    for (const Tensor& t : file.tensors) {
        const uint64_t rows = t.lengths.empty() ? 1 : t.lengths[0];
        if (t.kind == TERSOR_FACTORS) slices += t.slice ? std::min(rows / t.slice, MOST_SECTIONS) : 1;
        if (!t.unfactored()) continue;
        uint64_t left = t.kind == TERSOR_ROUNDED ? 2 : tersor_itemsize(static_cast<unsigned>(t.dtype));
        for (const uint64_t n : t.lengths) left = saturated(left, n);
        left = std::min(left, MOST_BYTES);
        while (left) {
            const uint64_t size = std::min<uint64_t>(left, TERSOR_GROUP);
            if (sizes.empty() || sizes.back() + size > TERSOR_GROUP) sizes.push_back(0);
            sizes.back() += size;
            left -= size;
        }
    }
    slices = std::min(slices, MOST_SECTIONS);
    return sizes;
}

inline bool inflate(std::string& out, const uint8_t* data, uint64_t size, uint64_t wanted) {
    out.assign(wanted, '\0');
    return tersor_inflate(data, size, reinterpret_cast<uint8_t*>(&out[0]), out.size()) == TERSOR_OK;
}

class Fields {  // of a header, in their order
public:
    explicit Fields(const std::string& header) {
        cursor_.data = reinterpret_cast<const uint8_t*>(header.data()), cursor_.size = header.size();
    }
    uint64_t integer() { return tersor_integer(&cursor_, TERSOR_LARGEST_FIELD); }
    uint64_t byte() { return tersor_byte(&cursor_, 255); }
    uint64_t u32() { return tersor_u32(&cursor_); }
    std::string raw(uint64_t size) {
        const uint8_t* bytes = tersor_raw(&cursor_, size);
        return bytes ? std::string(bytes, bytes + size) : std::string();
    }
    bool bad() const { return cursor_.bad; }
    uint64_t left() const { return cursor_.size - cursor_.used; }

private:
    tersor_cursor cursor_{};
};

inline bool read_tensors(File& file, Fields& in) {
    file.source = in.integer();
    const uint64_t count = in.integer();
    if (in.bad() || count > in.left() || count > 1000) return false;
    file.tensors.resize(count);
    auto& all = file.tensors;
    for (size_t i = 0; i < count; ++i) {
        const uint64_t shared = in.integer(), own = in.integer();
        all[i].name = (i ? all[i - 1].name.substr(0, shared) : "") + in.raw(own);
        if (in.bad() || all[i].name.size() > 4096) return false;
    }
    for (Tensor& t : all) t.dtype = in.byte();
    for (Tensor& t : all) t.kind = in.byte();
    for (Tensor& t : all) t.lengths.resize(in.byte());
    for (Tensor& t : all) for (uint64_t& n : t.lengths) n = in.integer();
    for (Tensor& t : all) if (t.unfactored()) t.reason = in.byte();
    for (Tensor& t : all) if (t.kind == TERSOR_ALIAS) t.target = in.integer();
    std::vector<Tensor*> factored;
    for (Tensor& t : all) if (t.kind == TERSOR_FACTORS) factored.push_back(&t);
    for (Tensor* t : factored) t->tile = in.integer();
    for (Tensor* t : factored) t->rank = in.integer();
    for (Tensor* t : factored) t->scale = in.u32();
    for (Tensor* t : factored) t->snr = in.byte(), t->snr |= in.byte() << 8;
    for (Tensor* t : factored) t->trellis = in.byte();
    for (Tensor* t : factored) t->codebook_start = in.byte();
    for (Tensor* t : factored) t->latent_start = in.byte();
    for (Tensor* t : factored) t->slice = in.integer();
    return !in.bad();
}

inline bool read(File& file, const uint8_t* data, size_t size) {
    if (size < 21) return false;
    const uint64_t deflated = tersor_load32(data + 9), plain = tersor_load32(data + 13);
    std::string header;
    if (deflated > size - 21 || plain > 1 << 20 || !inflate(header, data + 21, deflated, plain)) return false;
    Fields in(header);
    if (!read_tensors(file, in)) return false;
    const uint64_t tail = in.integer();
    uint64_t slices, at = 21 + deflated;
    const std::vector<uint64_t> sizes = groups(file, slices);
    for (uint64_t i = 0; i < slices + sizes.size(); ++i) {
        const uint64_t length = std::min<uint64_t>(in.integer(), size - at);
        Section section;
        if (i >= slices) section.plain = inflate(section.content, data + at, length, sizes[i - slices]);
        if (!section.plain) section.content.assign(data + at, data + at + length);
        file.sections.push_back(section);
        at += length;
    }
    if (tail > 4 && tail <= size - at) file.tail.assign(data + at + 4, data + at + tail);
    return !in.bad();
}

inline void put(std::string& out, uint64_t value, unsigned bytes) {
    for (; bytes; --bytes, value >>= 8) out.push_back(static_cast<char>(value));
}

inline void put_integer(std::string& out, uint64_t value) {
    for (; value > 127; value >>= 7) out.push_back(static_cast<char>(value | 128));
    out.push_back(static_cast<char>(value));
}

inline uint32_t checksum(const std::string& data) {
    uint32_t crc = 0xFFFFFFFFu;
    for (const char c : data) {
        crc ^= static_cast<uint8_t>(c);
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

inline std::string stored(const std::string& data) {  // as deflate has it
    std::string out;
    size_t at = 0;
    do {
        const size_t size = std::min<size_t>(data.size() - at, 65535);
        put(out, at + size == data.size(), 1);
        put(out, size, 2), put(out, ~size, 2);
        out.append(data, at, size);
        at += size;
    } while (at < data.size());
    return out;
}

inline void write_tensors(std::string& out, const File& file) {
    const auto& all = file.tensors;
    put_integer(out, file.source), put_integer(out, all.size());
    for (size_t i = 0; i < all.size(); ++i) {
        const std::string &name = all[i].name, before = i ? all[i - 1].name : "";
        size_t shared = 0;
        while (shared < name.size() && shared < before.size() && name[shared] == before[shared]) ++shared;
        put_integer(out, shared), put_integer(out, name.size() - shared), out.append(name, shared);
    }
    for (const Tensor& t : all) put(out, t.dtype, 1);
    for (const Tensor& t : all) put(out, t.kind, 1);
    for (const Tensor& t : all) put(out, t.lengths.size(), 1);
    for (const Tensor& t : all) for (const uint64_t n : t.lengths) put_integer(out, n);
    for (const Tensor& t : all) if (t.unfactored()) put(out, t.reason, 1);
    for (const Tensor& t : all) if (t.kind == TERSOR_ALIAS) put_integer(out, t.target);
    std::vector<const Tensor*> factored;
    for (const Tensor& t : all) if (t.kind == TERSOR_FACTORS) factored.push_back(&t);
    for (const Tensor* t : factored) put_integer(out, t->tile);
    for (const Tensor* t : factored) put_integer(out, t->rank);
    for (const Tensor* t : factored) put(out, t->scale, 4);
    for (const Tensor* t : factored) put(out, t->snr, 2);
    for (const Tensor* t : factored) put(out, t->trellis, 1);
    for (const Tensor* t : factored) put(out, t->codebook_start, 1);
    for (const Tensor* t : factored) put(out, t->latent_start, 1);
    for (const Tensor* t : factored) put_integer(out, t->slice);
}

// The sections that the fields ask for: what is there, and zeros. Groups become stored blocks.
inline std::vector<std::string> mended(const File& file) {
    uint64_t slices;
    const std::vector<uint64_t> sizes = groups(file, slices);
    std::vector<std::string> out;
    std::vector<const Section*> coded, plain;
    for (const Section& s : file.sections) (s.plain ? plain : coded).push_back(&s);
    for (uint64_t i = 0; i < slices; ++i) out.push_back(i < coded.size() ? coded[i]->content : "");
    for (uint64_t i = 0; i < sizes.size(); ++i) {
        const bool raw = i >= plain.size() && slices + i < coded.size();
        std::string content = raw ? coded[slices + i]->content : i < plain.size() ? plain[i]->content : "";
        if (!raw) content.resize(sizes[i], '\0');
        out.push_back(raw ? content : stored(content));
    }
    return out;
}

inline std::string head(const std::string& header) {
    const std::string deflated = stored(header);
    std::string out("\x93TERSOR\n\x01", 9);
    put(out, deflated.size(), 4), put(out, header.size(), 4), put(out, checksum(deflated), 4);
    return out + deflated;
}

}  // namespace structure
