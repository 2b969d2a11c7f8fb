// SPDX-License-Identifier: Apache-2.0
// Changes of files, field by field, for the fuzzers that know the format.
#include <algorithm>
#include <cstring>

#include "structure.hpp"

using namespace structure;

namespace {

class Mutator {
public:
    explicit Mutator(uint64_t seed) : state_((seed + 1) * 0x9E3779B97F4A7C15u | 1) {}

    // The bytes of a file like the given one; empty if that cannot be read.
    std::string operator()(const uint8_t* data, size_t size) {
        File file;
        if (!read(file, data, size)) return "";
        for (uint64_t changes = 1 + below(4); changes; --changes) change(file);
        return write(file);
    }

private:
    uint64_t below(uint64_t limit) {  // xorshift of Marsaglia (2003)
        state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
        return limit ? (state_ >> 11) % limit : 0;
    }
    template <class Values>
    auto& one(Values& values) {
        return values[below(values.size())];
    }

    uint64_t tweaked(uint64_t value) {
        static const std::vector<uint64_t> telling = {
            0, 1, 2, 3, 8, 64, 127, 128, 255, 256, 1032, 4095, 4096, 4097, 8192, 65535, 65536, 1 << 20,
            1 << 24, 0x7F800000, 0x80000000, 0xFFFFFFFF, 1ull << 32, (1ull << 48) - 1, 1ull << 48,
            (1ull << 48) + 1, 1ull << 55};
        switch (below(5)) {
            case 0: return value + 1;
            case 1: return value ? value - 1 : 1;
            case 2: return value ^ 1ull << below(below(2) ? 8 : 32);
            case 3: return below(2) ? value * 2 : value / 2;
            default: return one(telling);
        }
    }

    void tweak(Tensor& t) {
        std::vector<uint64_t*> fields = {&t.dtype, &t.kind};
        if (t.unfactored()) fields.push_back(&t.reason);
        else if (t.kind == TERSOR_ALIAS) fields.push_back(&t.target);
        else fields.insert(fields.end(), {&t.tile, &t.rank, &t.scale, &t.snr, &t.trellis, &t.codebook_start,
                                          &t.latent_start, &t.slice});
        for (uint64_t& n : t.lengths) fields.push_back(&n);
        const uint64_t which = below(fields.size() + 2);
        if (which < fields.size()) {
            uint64_t& field = *fields[which];
            field = tweaked(field);
            if (which == 0 && below(8)) t.dtype &= 15;  // others are refused at once
            if (which == 1 && below(8)) t.kind &= 3;
        } else if (which == fields.size() && t.lengths.size() < 255) {
            t.lengths.push_back(below(4));
        } else if (!t.lengths.empty()) {
            t.lengths.pop_back();
        }
    }

    void change_bytes(std::string& text) {
        const size_t at = below(text.size() + 1);
        switch (below(5)) {
            case 0: text.insert(at, 1, static_cast<char>(below(256))); break;
            case 1: text.erase(at, 1 + below(4)); break;
            case 2: text.resize(below(text.size() + 1)); break;
            case 3: text.append(1 + below(4), static_cast<char>(below(256))); break;
            default: if (at < text.size()) text[at] = static_cast<char>(below(2) ? below(256) : text[at] ^ 1 << below(8));
        }
    }

    void rename(File& file, std::string& name) {
        static const std::vector<std::string> texts = {"", ".weight", "\xC3\xA9", "\xED\xA0\x80", "\xF4\x8F\xBF\xBF",
                                                       "\xF4\x90\x80\x80", "\xC0\x80", "\x1B[2J", "\xE2\x80\xAE", "\n"};
        switch (below(3)) {
            case 0: name += one(texts); break;
            case 1: name = one(file.tensors).name + (below(2) ? "x" : ""); break;
            default: change_bytes(name);
        }
    }

    void rearrange(File& file) {
        auto& all = file.tensors;
        const size_t at = below(all.size());
        switch (below(4)) {
            case 0: all.erase(all.begin() + static_cast<long>(at)); break;
            case 1: std::swap(all[at], one(all)); break;
            case 2: {
                Tensor copy = all[at];
                copy.name += "'";
                all.insert(all.begin() + static_cast<long>(below(all.size() + 1)), copy);
                break;
            }
            default: {
                Tensor alias = all[at];
                alias.kind = TERSOR_ALIAS, alias.target = at, alias.name += "=";
                all.push_back(alias);
            }
        }
    }

    void change_tail(std::string& tail) {
        if (below(2)) return change_bytes(tail);
        static const uint64_t tags[] = {0, 1, 2, 4, 6, 7, 1 << 16};
        std::string content;
        for (uint64_t texts = below(5); texts; --texts) {
            const uint64_t size = below(12) ? below(4) : 256;
            put_integer(content, size), content.append(size, static_cast<char>('a' + below(26)));
        }
        const uint64_t tag = tags[below(7)];
        if (tag == 4) content.resize(below(4) ? 32 : 31);
        put_integer(tail, tag), put_integer(tail, content.size()), tail += content;
    }

    void change(File& file) {
        const uint64_t which = below(16);
        if (which == 0) file.source = tweaked(file.source);
        else if (which == 1) change_tail(file.tail);
        else if (which < 6 && !file.sections.empty()) change_bytes(one(file.sections).content);
        else if (which == 6 && !file.sections.empty()) std::swap(one(file.sections), one(file.sections));
        else if (file.tensors.empty()) file.tensors.emplace_back();
        else if (which == 7) rename(file, one(file.tensors).name);
        else if (which < 10) rearrange(file);
        else tweak(one(file.tensors));
    }

    std::string write(const File& file) {
        std::string header, tail;
        write_tensors(header, file);
        std::vector<std::string> sections = mended(file);
        if (!sections.empty() && !below(16)) change_bytes(one(sections));  // as compressed
        if (!file.tail.empty()) put(tail, checksum(file.tail), 4), tail += file.tail;
        put_integer(header, tail.size());
        for (const std::string& s : sections) put_integer(header, s.size());
        for (const std::string& s : sections) put(header, checksum(s), 4);
        if (!below(16)) change_bytes(header);
        std::string out = head(header);
        for (const std::string& s : sections) out += s;
        out += tail;
        if (!below(64)) change_bytes(out);
        return out;
    }

    uint64_t state_;
};

}  // namespace

// A file changed in its place, which has room for `room` bytes; its size. What is no file stays as it is.
extern "C" size_t tersor_mutate(uint8_t* data, size_t size, size_t room, unsigned seed);
extern "C" size_t tersor_mutate(uint8_t* data, size_t size, size_t room, unsigned seed) {
    const std::string made = Mutator(seed)(data, size);
    if (made.empty() || made.size() > room) return size;
    std::memcpy(data, made.data(), made.size());
    return made.size();
}
