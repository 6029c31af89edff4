// The Python binding. A tensor arrives as the tuple (address, type, stride, ...), an absent one as (); native_gate.py makes them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "program.h"

namespace nb = nanobind;
using statescan::View;

namespace nanobind::detail {

template <> struct type_caster<View> {
    NB_TYPE_CASTER(View, const_name("tuple"))

    bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
        value = View{};
        PyObject* tuple = source.ptr();
        if (!PyTuple_Check(tuple)) return false;
        const Py_ssize_t size = PyTuple_GET_SIZE(tuple);
        if (size == 0) return true;
        if (size < 2 || size > 7) return false;
        value.data = reinterpret_cast<char*>(PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(tuple, 0)));
        value.type = static_cast<int32_t>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, 1)));
        for (Py_ssize_t i = 2; i < size; ++i) value.stride[i - 2] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
        if (PyErr_Occurred()) {
            PyErr_Clear();
            return false;
        }
        return true;
    }
    static handle from_cpp(const View&, rv_policy, cleanup_list*) noexcept { return nullptr; }
};

}  // namespace nanobind::detail

namespace {

statescan::Kernels kernels;
std::string instruction_set;

bool supports(const std::string& name) {
    if (name == "baseline") return true;
#if defined(STATESCAN_HAS_avx2) && (defined(__x86_64__) || defined(_M_X64))
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "avx2") return avx2;
    if (name == "avx512")
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
    return false;
}

// Chooses the kernels for an instruction set, or the best one for "".
void choose(const std::string& wanted) {
    std::string name = wanted;
    if (name.empty()) name = supports("avx512") ? "avx512" : supports("avx2") ? "avx2" : "baseline";
    if (!supports(name)) throw nb::value_error(("this processor or build has no instruction set " + name).c_str());
    kernels = statescan::baseline::table();
#ifdef STATESCAN_HAS_avx2
    if (name == "avx2") kernels = statescan::avx2::table();
    if (name == "avx512") kernels = statescan::avx512::table();
#endif
    instruction_set = name;
}

// Sizes arrive as one tuple, in the order of the struct's fields.
int64_t size(const nb::tuple& sizes, size_t i) { return nb::cast<int64_t>(sizes[i]); }

statescan::Line line(View reset, View mask, View interval, float unit) { return {reset, mask, interval, unit}; }

statescan::SelectiveScan selective_scan(int threads, bool softplus, nb::tuple s, View x, View delta, View A, View B, View C, View D, View z,
                                        View bias, View state, View reset_to, View reset, View mask, View interval, float unit, View y,
                                        View last, View chunks, View weight = {}, int64_t rank = 0) {
    return {threads, softplus, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), x, delta, A, B, C, D, z, bias, state, reset_to,
            line(reset, mask, interval, unit), y, last, chunks, weight, rank};
}

statescan::CausalConv causal_conv1d(int threads, bool silu, nb::tuple s, View x, View weight, View bias, View state, View reset, View mask,
                                    View source, View y, View last) {
    return {threads, silu, size(s, 0), size(s, 1), size(s, 2), size(s, 3), x, weight, bias, state, line(reset, mask, {}, 1), source, y, last};
}

statescan::Ssd ssd(int threads, bool softplus, float low, float high, nb::tuple s, View x, View delta, View A, View B, View C, View D,
                   View bias, View state, View reset_to, View reset, View mask, View interval, float unit, View y, View last, View chunks) {
    return {threads, softplus, low, high, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), size(s, 5), x, delta, A, B, C, D, bias,
            state, reset_to, line(reset, mask, interval, unit), y, last, chunks};
}

statescan::MatrixState matrix_state(int threads, bool by_channel, float scale, nb::tuple s, View q, View key, View value, View beta, View decay,
                                    View read, View state, View reset, View mask, View y, View last, View chunks) {
    return {threads, by_channel, scale, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), size(s, 5), size(s, 6), q, key, value, beta,
            decay, read, state, line(reset, mask, {}, 1), y, last, chunks};
}

statescan::Mamba3 mamba3(int threads, nb::tuple s, View q, View k, View v, View z, View log_decay, View delta, View mix, View speed, View q_bias,
                         View k_bias, View D, View v_weight, View z_weight, View y_weight, View angle, View ssm, View last_k, View last_v,
                         View reset, View mask) {
    return {threads, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), size(s, 5), size(s, 6), size(s, 7), q, k, v, z,
            log_decay, delta, mix, speed, q_bias, k_bias, D, v_weight, z_weight, y_weight, angle, ssm, last_k, last_v,
            line(reset, mask, {}, 1), {}, {}, {}, {}, {}};
}

statescan::LogLinear log_linear(int threads, float scale, nb::tuple s, View q, View k, View v, View weight, View decay, View beta, View state,
                                int64_t before, View reset, View mask, View y, View last) {
    return {threads, scale, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), size(s, 5), size(s, 6), q, k, v, weight, decay, beta, state,
            reinterpret_cast<const int64_t*>(before), line(reset, mask, {}, 1), y, last};
}

statescan::Mesa mesa(int threads, int64_t iterations, nb::tuple s, View q, View k, View v, View beta, View decay, View ridge, View G, View S,
                     View reset, View mask, View y, View G_last, View S_last, View x) {
    return {threads, iterations, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), q, k, v, beta, decay, ridge, G, S,
            line(reset, mask, {}, 1), y, G_last, S_last, x};
}

statescan::Slstm slstm(int threads, nb::tuple s, View gates, View R, View state, View reset, View mask, View y, View last, View raw,
                       View chunks) {
    return {threads, size(s, 0), size(s, 1), size(s, 2), size(s, 3), gates, R, state, line(reset, mask, {}, 1), y, last, raw, chunks};
}

statescan::DiagonalScan diagonal_scan(int threads, nb::tuple s, View a, View b, View state, View reset_to, View reset, View mask, View h,
                                      View last) {
    return {threads, size(s, 0), size(s, 1), size(s, 2), a, b, state, reset_to, line(reset, mask, {}, 1), h, last};
}

statescan::RmsNorm rms_norm(int threads, bool gate_last, float eps, nb::tuple s, View x, View weight, View z, View y) {
    return {threads, gate_last, eps, size(s, 0), size(s, 1), size(s, 2), size(s, 3), x, weight, z, y};
}

// Addresses of contiguous double-precision arrays, in the order of the struct.
statescan::DplrKernel dplr_kernel(int threads, nb::tuple s, const std::vector<int64_t>& at) {
    const auto p = [&](size_t i) { return reinterpret_cast<double*>(at.at(i)); };
    return {threads, size(s, 0), size(s, 1), size(s, 2), size(s, 3), p(0), p(1), p(2), p(3), p(4), p(5)};
}

statescan::Matrix matrix(int64_t out, int64_t in, int64_t group, View weight, View scale, View bias) {
    return {out, in, group, weight, scale, bias};
}

// (space, at, offset, row, each)
statescan::Operand operand(const nb::tuple& o) {
    return {static_cast<statescan::Operand::Space>(size(o, 0)), size(o, 1), size(o, 2), size(o, 3), size(o, 4)};
}

// Instructions of a decoding step; see program.h. Addresses of weights are final, the Python side keeps the tensors alive.
class Program {
public:
    statescan::Instruction& add(statescan::Instruction::Kind kind, int64_t source, int64_t target, int64_t width) {
        statescan::Instruction i{kind};
        i.source = source;
        i.target = target;
        i.width = width;
        i.beside = grouped_ && !first_;
        first_ = false;
        return instructions_.emplace_back(i);
    }
    // What is added until it closes runs side by side.
    void group(bool open) {
        grouped_ = open;
        first_ = true;
    }
    // Joins the steps right before it, if that was the last instruction.
    void step(const statescan::RowStep& s) {
        if (instructions_.empty() || instructions_.back().kind != statescan::Instruction::kRows)
            add(statescan::Instruction::kRows, 0, 0, 0).index = static_cast<int64_t>(steps_.size());
        ++instructions_.back().count;
        steps_.push_back(s);
    }
    void matrix_step(const statescan::MatrixStep& a) {
        add(statescan::Instruction::kMatrix, 0, 0, 0).index = static_cast<int64_t>(matrices_.size());
        matrices_.push_back(a);
    }
    void attend(const statescan::Attend& a) {
        for (const auto kind : {statescan::Instruction::kAttend, statescan::Instruction::kRemember})
            add(kind, 0, 0, 0).index = static_cast<int64_t>(attends_.size());
        attends_.push_back(a);
    }
    void scan(const statescan::SelectiveScan& a) {
        add(statescan::Instruction::kSelective, 0, 0, 0).index = static_cast<int64_t>(scans_.size());
        scans_.push_back(a);
    }
    void embed(int64_t target, int64_t width, int64_t vocabulary, View table) {
        add(statescan::Instruction::kEmbed, 0, target, width).matrix.weight = table;
        vocabulary_ = vocabulary;
    }
    void conv(const statescan::CausalConv& a) {
        add(statescan::Instruction::kConv, 0, 0, 0).index = static_cast<int64_t>(convs_.size());
        convs_.push_back(a);
    }
    void ssd(const statescan::Ssd& a) {
        add(statescan::Instruction::kSsd, 0, 0, 0).index = static_cast<int64_t>(ssds_.size());
        ssds_.push_back(a);
    }
    void log_linear(const statescan::LogLinear& a) {
        add(statescan::Instruction::kLevels, 0, 0, 0).index = static_cast<int64_t>(levels_.size());
        levels_.push_back(a);
    }
    void mesa(const statescan::Mesa& a) {
        add(statescan::Instruction::kMesa, 0, 0, 0).index = static_cast<int64_t>(mesas_.size());
        mesas_.push_back(a);
    }
    void run(int threads, int64_t rows, uintptr_t ids, uintptr_t workspace, int64_t stride, uintptr_t output, int64_t output_stride,
             const std::vector<uintptr_t>& before, const std::vector<uintptr_t>& after, const std::vector<int64_t>& entries_before,
             const std::vector<int64_t>& entries_after) const {
        if (instructions_.empty()) return;
        for (int64_t r = 0; r < rows && vocabulary_ > 0; ++r) {
            const int64_t id = reinterpret_cast<const int64_t*>(ids)[r];
            if (id < 0 || id >= vocabulary_)
                throw nb::value_error(("token id " + std::to_string(id) + " lies outside the vocabulary of " + std::to_string(vocabulary_)).c_str());
        }
        nb::gil_scoped_release release;
        kernels.run_program({{instructions_.data(), static_cast<int64_t>(instructions_.size()), stride, convs_.data(), scans_.data(), ssds_.data(), levels_.data(),
                              mesas_.data(), steps_.data(), matrices_.data(), attends_.data()},
                             threads, rows, reinterpret_cast<const int64_t*>(ids), reinterpret_cast<float*>(workspace),
                             reinterpret_cast<float*>(output), output_stride, reinterpret_cast<float* const*>(before.data()),
                             reinterpret_cast<float* const*>(after.data()), entries_before.data(), entries_after.data()});
    }

private:
    int64_t vocabulary_ = 0;
    std::vector<statescan::Instruction> instructions_;
    std::vector<statescan::LogLinear> levels_;
    std::vector<statescan::Mesa> mesas_;
    std::vector<statescan::CausalConv> convs_;
    std::vector<statescan::SelectiveScan> scans_;
    std::vector<statescan::Ssd> ssds_;
    std::vector<statescan::RowStep> steps_;
    std::vector<statescan::MatrixStep> matrices_;
    std::vector<statescan::Attend> attends_;
    bool grouped_ = false, first_ = true;
};

#define NOGIL nb::gil_scoped_release release
#define V const View&

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // what a hook still holds when the interpreter ends is no concern of the user
    choose("");
    m.def("choose", &choose);
    m.def("instruction_set", [] { return instruction_set; });
    m.def("supports", &supports);
    m.def("amd", [] {
#if defined(__x86_64__) || defined(_M_X64)
        __builtin_cpu_init();
        return __builtin_cpu_is("amd") != 0;
#else
        return false;
#endif
    });
    m.def("find_openmp", [](const std::string& path) { return statescan::find_openmp(path.c_str()); });
    m.attr("CHUNK") = statescan::kChunk;
    m.attr("SCAN_CHUNK") = statescan::kScanChunk;
    m.attr("TILE") = statescan::kTile;
    m.attr("HEADS") = statescan::kHeads;
    m.attr("TOGETHER") = statescan::kTogether;

    m.def("selective_scan", [](int threads, bool softplus, nb::tuple s, V x, V delta, V A, V B, V C, V D, V z, V bias, V state, V reset_to,
                               V reset, V mask, V interval, float unit, V y, V last, V chunks, V weight, int64_t rank) {
        const auto a = selective_scan(threads, softplus, s, x, delta, A, B, C, D, z, bias, state, reset_to, reset, mask, interval, unit, y,
                                      last, chunks, weight, rank);
        NOGIL;
        kernels.selective_scan(a);
    });
    m.def("selective_scan_backward",
          [](int threads, bool softplus, nb::tuple s, V x, V delta, V A, V B, V C, V D, V z, V bias, V reset_to, V reset, V mask, V interval,
             float unit, V chunks, V gy, V glast, V gx, V gdelta, V gA, V gB, V gC, V gD, V gz, V gbias, V gstate, V greset, V ginterval,
             V part_B, V part_C, V part_A, V part_D, V part_bias, V part_interval) {
              const statescan::SelectiveScanGrad a{
                  selective_scan(threads, softplus, s, x, delta, A, B, C, D, z, bias, {}, reset_to, reset, mask, interval, unit, {}, {}, chunks),
                  gy, glast, gx, gdelta, gA, gB, gC, gD, gz, gbias, gstate, greset, ginterval,
                  part_B, part_C, part_A, part_D, part_bias, part_interval};
              NOGIL;
              kernels.selective_scan_backward(a);
          });
    m.def("causal_conv1d", [](int threads, bool silu, nb::tuple s, V x, V weight, V bias, V state, V reset, V mask, V source, V y, V last) {
        const auto a = causal_conv1d(threads, silu, s, x, weight, bias, state, reset, mask, source, y, last);
        NOGIL;
        kernels.causal_conv1d(a);
    });
    m.def("causal_conv1d_backward", [](int threads, bool silu, nb::tuple s, V x, V weight, V bias, V state, V reset, V mask, V source, V gy,
                                       V glast, V gx, V gweight, V gbias, V gstate, V part) {
        const statescan::CausalConvGrad a{causal_conv1d(threads, silu, s, x, weight, bias, state, reset, mask, source, {}, {}),
                                          gy, glast, gx, gweight, gbias, gstate, part};
        NOGIL;
        kernels.causal_conv1d_backward(a);
    });
    m.def("ssd", [](int threads, bool softplus, float low, float high, nb::tuple s, V x, V delta, V A, V B, V C, V D, V bias, V state,
                    V reset_to, V reset, V mask, V interval, float unit, V y, V last, V chunks) {
        const auto a = ssd(threads, softplus, low, high, s, x, delta, A, B, C, D, bias, state, reset_to, reset, mask, interval, unit, y, last,
                           chunks);
        NOGIL;
        kernels.ssd(a);
    });
    m.def("ssd_backward", [](int threads, bool softplus, float low, float high, nb::tuple s, V x, V delta, V A, V B, V C, V D, V bias,
                             V reset_to, V reset, V mask, V interval, float unit, V chunks, V gy, V glast, V gx, V gdelta, V gA, V gB, V gC,
                             V gD, V gbias, V gstate, V greset, V ginterval, V part_B, V part_C, V part_A, V part_D, V part_bias,
                             V part_interval) {
        const statescan::SsdGrad a{
            ssd(threads, softplus, low, high, s, x, delta, A, B, C, D, bias, {}, reset_to, reset, mask, interval, unit, {}, {}, chunks),
            gy, glast, gx, gdelta, gA, gB, gC, gD, gbias, gstate, greset, ginterval,
            part_B, part_C, part_A, part_D, part_bias, part_interval};
        NOGIL;
        kernels.ssd_backward(a);
    });
    m.def("matrix_state", [](int threads, bool by_channel, float scale, nb::tuple s, V q, V key, V value, V beta, V decay, V read, V state,
                             V reset, V mask, V y, V last, V chunks) {
        const auto a = matrix_state(threads, by_channel, scale, s, q, key, value, beta, decay, read, state, reset, mask, y, last, chunks);
        NOGIL;
        kernels.matrix_state(a);
    });
    m.def("matrix_state_backward",
          [](int threads, bool by_channel, float scale, nb::tuple s, V q, V key, V value, V beta, V decay, V read, V reset, V mask, V chunks,
             V gy, V glast, V gq, V gkey, V gvalue, V gbeta, V gdecay, V gread, V gstate, V part_q, V part_key) {
              const statescan::MatrixStateGrad a{
                  matrix_state(threads, by_channel, scale, s, q, key, value, beta, decay, read, {}, reset, mask, {}, {}, chunks),
                  gy, glast, gq, gkey, gvalue, gbeta, gdecay, gread, gstate, part_q, part_key};
              NOGIL;
              kernels.matrix_state_backward(a);
          });
    m.def("mamba3", [](int threads, nb::tuple s, V q, V k, V v, V z, V log_decay, V delta, V mix, V speed, V q_bias, V k_bias, V D, V v_weight,
                       V z_weight, V y_weight, V angle, V ssm, V last_k, V last_v, V reset, V mask, V y, V angle_last, V ssm_last, V k_last,
                       V v_last) {
        auto a = mamba3(threads, s, q, k, v, z, log_decay, delta, mix, speed, q_bias, k_bias, D, v_weight, z_weight, y_weight, angle, ssm,
                        last_k, last_v, reset, mask);
        a.y = y, a.angle_last = angle_last, a.ssm_last = ssm_last, a.k_last = k_last, a.v_last = v_last;
        NOGIL;
        kernels.mamba3(a);
    });
    m.def("mamba3_backward", [](int threads, nb::tuple s, V q, V k, V v, V z, V log_decay, V delta, V mix, V speed, V q_bias, V k_bias, V D,
                                V v_weight, V z_weight, V y_weight, V angle, V ssm, V last_k, V last_v, V reset, V mask, V gy, V gangle_last,
                                V gssm_last, V gk_last, V gv_last, V gq, V gk, V gv, V gz, V glog_decay, V gdelta, V gmix, V gspeed, V gq_bias,
                                V gk_bias, V gD, V gv_weight, V gz_weight, V gy_weight, V gangle, V gssm, V glast_k, V glast_v) {
        const statescan::Mamba3Grad a{
            mamba3(threads, s, q, k, v, z, log_decay, delta, mix, speed, q_bias, k_bias, D, v_weight, z_weight, y_weight, angle, ssm, last_k,
                   last_v, reset, mask),
            gy, gangle_last, gssm_last, gk_last, gv_last, gq, gk, gv, gz, glog_decay, gdelta, gmix, gspeed, gq_bias, gk_bias, gD,
            gv_weight, gz_weight, gy_weight, gangle, gssm, glast_k, glast_v};
        NOGIL;
        kernels.mamba3_backward(a);
    });
    m.def("log_linear", [](int threads, float scale, nb::tuple s, V q, V k, V v, V weight, V decay, V beta, V state, int64_t before, V reset,
                           V mask, V y, V last) {
        const auto a = log_linear(threads, scale, s, q, k, v, weight, decay, beta, state, before, reset, mask, y, last);
        NOGIL;
        kernels.log_linear(a);
    });
    m.def("log_linear_backward",
          [](int threads, float scale, nb::tuple s, V q, V k, V v, V weight, V decay, V beta, V state, int64_t before, V reset, V mask, V gy, V glast,
             V gq, V gk, V gv, V gweight, V gdecay, V gbeta, V gstate, V part_q, V part_k) {
              const statescan::LogLinearGrad a{log_linear(threads, scale, s, q, k, v, weight, decay, beta, state, before, reset, mask, {}, {}),
                                               gy, glast, gq, gk, gv, gweight, gdecay, gbeta, gstate, part_q, part_k};
              NOGIL;
              kernels.log_linear_backward(a);
          });
    m.def("mesa", [](int threads, int64_t iterations, nb::tuple s, V q, V k, V v, V beta, V decay, V ridge, V G, V S, V reset, V mask, V y,
                     V G_last, V S_last, V x) {
        const auto a = mesa(threads, iterations, s, q, k, v, beta, decay, ridge, G, S, reset, mask, y, G_last, S_last, x);
        NOGIL;
        kernels.mesa(a);
    });
    m.def("mesa_backward", [](int threads, int64_t iterations, nb::tuple s, V k, V v, V beta, V decay, V ridge, V G, V S, V reset, V mask,
                              V x, V gy, V gG_last, V gS_last, V gq, V gk, V gv, V gbeta, V gdecay, V gridge, V gG, V gS, V part_ridge) {
        const statescan::MesaGrad a{mesa(threads, iterations, s, {}, k, v, beta, decay, ridge, G, S, reset, mask, {}, {}, {}, x),
                                    gy, gG_last, gS_last, gq, gk, gv, gbeta, gdecay, gridge, gG, gS, part_ridge};
        NOGIL;
        kernels.mesa_backward(a);
    });
    m.def("slstm", [](int threads, nb::tuple s, V gates, V R, V state, V reset, V mask, V y, V last, V raw, V chunks) {
        const auto a = slstm(threads, s, gates, R, state, reset, mask, y, last, raw, chunks);
        NOGIL;
        kernels.slstm(a);
    });
    m.def("slstm_backward", [](int threads, nb::tuple s, V R, V reset, V mask, V raw, V chunks, V gy, V glast, V ggates, V gR, V gstate) {
        const statescan::SlstmGrad a{slstm(threads, s, {}, R, {}, reset, mask, {}, {}, raw, chunks), gy, glast, ggates, gR, gstate};
        NOGIL;
        kernels.slstm_backward(a);
    });
    m.def("diagonal_scan", [](int threads, nb::tuple s, V a, V b, V state, V reset_to, V reset, V mask, V h, V last) {
        const auto f = diagonal_scan(threads, s, a, b, state, reset_to, reset, mask, h, last);
        NOGIL;
        kernels.diagonal_scan(f);
    });
    m.def("diagonal_scan_backward", [](int threads, nb::tuple s, V a, V b, V state, V reset_to, V reset, V mask, V h, V previous, V gh,
                                       V glast, V gb, V gstate, V greset, V part_a) {
        const statescan::DiagonalScanGrad f{diagonal_scan(threads, s, a, b, state, reset_to, reset, mask, h, {}), previous, gh, glast,
                                            gb, gstate, greset, part_a};
        NOGIL;
        kernels.diagonal_scan_backward(f);
    });
    m.def("product", [](int threads, int64_t rows, int64_t out, int64_t in, int64_t group, V weight, V scale, V bias, V x, V y) {
        const statescan::Product a{threads, rows, matrix(out, in, group, weight, scale, bias), x, y};
        NOGIL;
        kernels.product(a);
    });
    m.def("dequantize", [](int threads, int64_t out, int64_t in, int64_t group, V weight, V scale, V y) {
        const statescan::Dequantize a{threads, matrix(out, in, group, weight, scale, {}), y};
        NOGIL;
        kernels.dequantize(a);
    });
    m.def("gemm", [](int threads, int64_t rows, int64_t columns, int64_t depth, V a, V b, V bias, V c) {
        const statescan::Gemm g{threads, rows, columns, depth, a, b, bias, c};
        NOGIL;
        kernels.gemm(g);
    });

    m.def("dplr_kernel", [](int threads, nb::tuple s, const std::vector<int64_t>& at) {
        const auto a = dplr_kernel(threads, s, at);
        NOGIL;
        kernels.dplr_kernel(a);
    });
    m.def("dplr_kernel_backward", [](int threads, nb::tuple s, const std::vector<int64_t>& at) {
        const auto p = [&](size_t i) { return reinterpret_cast<double*>(at.at(i)); };
        const statescan::DplrKernelGrad a{dplr_kernel(threads, s, at), p(5), p(6), p(7), p(8), p(9), p(10)};
        NOGIL;
        kernels.dplr_kernel_backward(a);
    });
    m.def("rms_norm", [](int threads, bool gate_last, float eps, nb::tuple s, V x, V weight, V z, V y) {
        const auto a = rms_norm(threads, gate_last, eps, s, x, weight, z, y);
        NOGIL;
        kernels.rms_norm(a);
    });
    m.def("rms_norm_backward", [](int threads, bool gate_last, float eps, nb::tuple s, V x, V weight, V z, V gy, V gx, V gweight, V gz, V part) {
        const statescan::RmsNormGrad a{rms_norm(threads, gate_last, eps, s, x, weight, z, {}), gy, gx, gweight, gz, part};
        NOGIL;
        kernels.rms_norm_backward(a);
    });

    using Kind = statescan::Instruction;
    nb::class_<Program>(m, "Program")
        .def(nb::init<>())
        .def("embed", &Program::embed)
        .def("norm", [](Program& p, int64_t source, int64_t target, int64_t width, V weight, float eps) {
            auto& i = p.add(Kind::kNorm, source, target, width);
            i.matrix.weight = weight;
            i.eps = eps;
        })
        .def("linear", [](Program& p, int64_t source, int64_t target, bool add, int64_t out, int64_t in, int64_t group, View weight, View scale,
                          View bias, int64_t blocks, int64_t block_stride) {
            auto& i = p.add(Kind::kLinear, source, target, out);
            i.matrix = matrix(out, in, group, weight, scale, bias);
            i.add = add;
            i.blocks = blocks;
            i.block_stride = block_stride;
        })
        .def("conv", [](Program& p, bool silu, nb::tuple s, V x, V weight, V bias, V state, V y, V last) {
            p.conv(causal_conv1d(1, silu, s, x, weight, bias, state, {}, {}, {}, y, last));
        })
        .def("selective_scan", [](Program& p, bool softplus, nb::tuple s, V x, V delta, V A, V B, V C, V D, V z, V bias, V state, V y, V last) {
            p.scan(selective_scan(1, softplus, s, x, delta, A, B, C, D, z, bias, state, {}, {}, {}, {}, 1, y, last, {}));
        })
        .def("ssd", [](Program& p, bool softplus, float low, float high, nb::tuple s, V x, V delta, V A, V B, V C, V D, V bias, V state, V y,
                       V last) { p.ssd(ssd(1, softplus, low, high, s, x, delta, A, B, C, D, bias, state, {}, {}, {}, {}, 1, y, last, {})); })
        .def("log_linear", [](Program& p, float scale, nb::tuple s, V q, V k, V v, V weight, V decay, V beta, V state, int64_t before, V y) {
            p.log_linear(log_linear(1, scale, s, q, k, v, weight, decay, beta, state, before, {}, {}, y, state));
        })
        .def("mesa", [](Program& p, int64_t iterations, nb::tuple s, V q, V k, V v, V beta, V decay, V ridge, V G, V S, V y) {
            p.mesa(mesa(1, iterations, s, q, k, v, beta, decay, ridge, G, S, {}, {}, y, G, S, {}));
        })
        .def("gated_norm", [](Program& p, int64_t source, int64_t gate, int64_t target, int64_t width, int64_t groups, V weight, float eps,
                              bool gate_last) {
            auto& i = p.add(Kind::kGatedNorm, source, target, width);
            i.other = gate;
            i.groups = groups;
            i.matrix.weight = weight;
            i.eps = eps;
            i.gate_last = gate_last;
        })
        .def("gated_unit", [](Program& p, int64_t source, int64_t gate, int64_t target, int64_t width) {
            p.add(Kind::kGatedUnit, source, target, width).other = gate;
        })
        .def("group", &Program::group)
        .def("step", [](Program& p, int32_t op, int64_t width, nb::tuple a, nb::tuple b, nb::tuple to, nb::tuple s) {
            p.step({static_cast<statescan::RowStep::Op>(op), width, operand(a), operand(b), operand(to),
                    {size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), size(s, 5)}});
        })
        .def("matrix_step", [](Program& p, bool by_channel, bool transposed, float scale, nb::tuple s, nb::tuple at, int64_t state) {
            p.matrix_step({by_channel, transposed, scale, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(s, 4), size(s, 5), size(at, 0),
                           size(at, 1), size(at, 2), size(at, 3), size(at, 4), size(at, 5), size(at, 6), state});
        })
        .def("attend", [](Program& p, float scale, nb::tuple s, nb::tuple at, int64_t keys, int64_t values) {
            p.attend({scale, size(s, 0), size(s, 1), size(s, 2), size(s, 3), size(at, 0), size(at, 1), size(at, 2), size(at, 3), size(at, 4),
                      keys, values});
        })
        .def("run", &Program::run);
}
