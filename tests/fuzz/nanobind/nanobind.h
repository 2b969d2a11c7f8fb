/* SPDX-License-Identifier: Apache-2.0 */
// In the place of nanobind, for a fuzzer of what is behind it: the module is compiled without Python, and
// what makes it known to Python is a template that nobody calls.
#pragma once

#include <stdexcept>

#define NB_MODULE(name, module) \
    template <class Module>     \
    void name(Module module)

namespace nanobind {

struct gil_scoped_release {
    gil_scoped_release() {}
};

struct index_error : std::out_of_range {
    using std::out_of_range::out_of_range;
};

struct dict {
    long number;
    long& operator[](const char*) { return number; }
};

template <class Bound>
struct class_ {
    template <class... Arguments>
    explicit class_(Arguments&&...) {}
    template <class... Arguments>
    class_& def(Arguments&&...) {
        return *this;
    }
};

}  // namespace nanobind
