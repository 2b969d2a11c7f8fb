// SPDX-License-Identifier: Apache-2.0
// Prints the bits of look-up products, for comparison between machines.
#include <cstdio>
#include <cstring>
#include <vector>

#include "dispatch.hpp"

using namespace tersor::lookup;

static uint32_t state = 1;
static uint32_t draw() { return (state = state * 1664525 + 1013904223) >> 8; }
static float number() { return static_cast<float>(static_cast<int32_t>(draw() & 0xFFFF) - 0x8000) / 0x1000; }

int main() {
    tersor::Workspace workspace;
    for (const bool signs : {false, true})
        for (const int64_t pairs : {1, 2, 3, 4})
            for (const int64_t batch : {1, 2, 3, 4, 5, 16, 21}) {
                Layer layer{45, 203, 8, pairs, signs, nullptr, nullptr};
                std::vector<uint8_t> codes(layer.panels() * layer.panel_bytes());
                for (uint8_t& code : codes) code = static_cast<uint8_t>(draw());
                std::vector<float> codebook(layer.tile * layer.atoms()), x(batch * layer.inputs);
                for (float& c : codebook) c = number();
                for (float& value : x) value = number();
                layer.codes = codes.data(), layer.codebook = codebook.data();
                std::vector<float> y(batch * layer.rows);
                linear(TERSOR_TARGET, layer, x.data(), batch, nullptr, y.data(), 1, 5, workspace);
                for (const float value : y) {
                    uint32_t bits;
                    std::memcpy(&bits, &value, sizeof bits);
                    std::printf("%08x\n", bits);
                }
            }
}
