#include "cpu/weights.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace smoothloss {
namespace {

using namespace portable;

// Sample by sample, as the numbers lie in memory, with one state for each input.
template <class T>
class Weighing {
  public:
    explicit Weighing(const WeightArguments& a)
        : a_(a), out_(static_cast<T*>(a.out)), largest_(static_cast<size_t>(a.inputs)), sum_(largest_.size()) {}

    void run() {
        if (a_.samples * a_.inputs == 0) return;
        find_largest([&](int64_t l, int64_t b) { return clipped_score<T>(a_, l, b); });
        for_each([&](int64_t l, int64_t b, size_t of) { at(l, b) = log_weight<T>(a_, l, b, largest_[of]); });
        find_largest([&](int64_t l, int64_t b) { return at(l, b); });
        for_each([&](int64_t l, int64_t b, size_t of) {
            at(l, b) = std::exp(below(at(l, b), largest_[of]));
            sum_[of] += static_cast<double>(at(l, b));
        });
        if (a_.of_batch) {
            double all = 0;
            for (double sum : sum_) all += sum;
            std::fill(sum_.begin(), sum_.end(), all);
        }
        for (double& sum : sum_) sum = weight_scale(a_, sum);
        for_each([&](int64_t l, int64_t b, size_t of) { at(l, b) = static_cast<T>(at(l, b) * sum_[of]); });
    }

  private:
    T& at(int64_t sample, int64_t input) { return out_[sample * a_.inputs + input]; }

    template <class Function>
    void for_each(Function function) {
        for (int64_t l = 0; l < a_.samples; ++l) {
            for (int64_t b = 0; b < a_.inputs; ++b) function(l, b, static_cast<size_t>(b));
        }
    }

    template <class Function>
    void find_largest(Function function) {
        std::fill(largest_.begin(), largest_.end(), -static_cast<T>(INFINITY));
        for_each([&](int64_t l, int64_t b, size_t of) { largest_[of] = larger_or_nan(largest_[of], function(l, b)); });
        if (!a_.of_batch) return;
        T of_all = largest_[0];
        for (T one : largest_) of_all = larger_or_nan(of_all, one);
        std::fill(largest_.begin(), largest_.end(), of_all);
    }

    const WeightArguments& a_;
    T* out_;
    std::vector<T> largest_;
    std::vector<double> sum_;
};

}  // namespace

void importance_weights(const WeightArguments& a) {
    a.in_double ? Weighing<double>(a).run() : Weighing<float>(a).run();
}

}  // namespace smoothloss
