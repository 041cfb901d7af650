// Part of products.cpp, within its namespace: a mixture's experts, tokens grouped by expert.

// Rows of one expert that are worked on at once: tokens and shares [first, first + count), results in rows of `memory`.
struct Segment {
    int64_t expert;
    int64_t first;
    int count;
};

class Mixture {
  public:
    Mixture(const HrmExperts& job, const Rows& x, const Kernels& kernels, int32_t num_threads)
        : job_(job), x_(x), kernels_(kernels), num_threads_(num_threads), element_bytes_(job.weights_are_bfloat16 ? 2 : 4),
          row_bytes_(packed_bytes(job.intermediate)), rows_(at(job.memory, job.tokens * packed_bytes(job.hidden))) {
        sort_by_expert();
    }

    void run() {
        if (!job_.adds)
            share_out(job_.tokens, static_cast<double>(job_.tokens * job_.hidden), num_threads_, [&](int64_t token, int64_t) {
                std::memset(job_.out + token * job_.hidden, 0, sizeof(float) * job_.hidden);
            });
        if (!x_.lie_well()) {
            const std::vector<int64_t> wanted = wanted_tokens();
            const int64_t count = static_cast<int64_t>(wanted.size());
            share_out(count, static_cast<double>(count * job_.hidden), num_threads_,
                      [&](int64_t i, int64_t) { x_.pack(kernels_, wanted[i]); });
        }
        // As many whole experts as the rows hold; one with more rows than that is taken in parts.
        for (int64_t expert = 0, first = 0; expert < job_.num_experts;) {
            segments_.clear();
            first_row_ = starts_[expert] + first;
            int64_t room = std::min<int64_t>(job_.rows_at_a_time, kMostRows);
            for (; expert < job_.num_experts; ++expert, first = 0) {
                const int64_t left = starts_[expert + 1] - starts_[expert] - first;
                if (left > room && !segments_.empty()) break;
                const int64_t taken = std::min(left, room);
                for (int64_t row = 0; row < taken; row += kMaxRows)
                    segments_.push_back({expert, starts_[expert] + first + row,
                                         static_cast<int>(std::min<int64_t>(kMaxRows, taken - row))});
                room -= taken;
                first += taken;
                if (taken < left) break;
            }
            if (!segments_.empty()) run_segments();
        }
    }

  private:
    void sort_by_expert() {
        starts_.assign(job_.num_experts + 1, 0);
        const int64_t chosen = job_.tokens * job_.per_token;
        for (int64_t i = 0; i < chosen; ++i)
            if (has(job_.chosen[i])) ++starts_[job_.chosen[i] - job_.first_expert + 1];
        for (int64_t expert = 0; expert < job_.num_experts; ++expert) starts_[expert + 1] += starts_[expert];
        tokens_.resize(starts_.back());
        shares_.resize(starts_.back());
        std::vector<int64_t> next(starts_);
        for (int64_t i = 0; i < chosen; ++i) {
            if (!has(job_.chosen[i])) continue;
            const int64_t row = next[job_.chosen[i] - job_.first_expert]++;
            tokens_[row] = i / job_.per_token;
            shares_[row] = job_.shares[i];
        }
    }

    // Tokens that go to an expert, each once: all of them where every expert of a layer is here, a few where one is.
    std::vector<int64_t> wanted_tokens() const {
        std::vector<char> goes(job_.tokens);
        for (const int64_t token : tokens_) goes[token] = 1;
        std::vector<int64_t> wanted;
        wanted.reserve(std::min<size_t>(tokens_.size(), goes.size()));
        for (int64_t token = 0; token < job_.tokens; ++token)
            if (goes[token]) wanted.push_back(token);
        return wanted;
    }

    bool has(int64_t expert) const { return expert >= job_.first_expert && expert < job_.first_expert + job_.num_experts; }

    char* row(int64_t index) const { return at(rows_, (index - first_row_) * row_bytes_); }

    // Few rows are bound by memory and many by arithmetic: sorted, threads that take them from both ends use both at once.
    void run_segments() {
        std::stable_sort(segments_.begin(), segments_.end(),
                         [](const Segment& left, const Segment& right) { return left.count < right.count; });
        num_rows_ = 0;
        for (const Segment& segment : segments_) num_rows_ += segment.count;
        const double multiply_adds = static_cast<double>(num_rows_) * static_cast<double>(job_.hidden * job_.intermediate);
        const int64_t num_segments = static_cast<int64_t>(segments_.size());
        const int step = piece_outputs(job_.intermediate, num_segments, num_threads_);
        const int64_t pieces = (job_.intermediate + step - 1) / step;
        share_out(num_segments * pieces, 2 * multiply_adds, num_threads_, [&](int64_t item, int64_t next) {
            const char* gate_after = gate(segments_[next / pieces], next % pieces * step);
            up(segments_[item / pieces], item % pieces * step, step, gate_after);
        });
        const int down_step = piece_outputs(job_.hidden, 1, num_threads_);
        share_out((job_.hidden + down_step - 1) / down_step, multiply_adds, num_threads_, [&](int64_t item, int64_t next) {
            if (next < item)
                down(segments_.rbegin(), segments_.rend(), item * down_step, down_step, next * down_step);
            else
                down(segments_.begin(), segments_.end(), item * down_step, down_step, next * down_step);
        });
    }

    const char* gate(const Segment& segment, int64_t output) const {
        return at(job_.experts[segment.expert], output * job_.hidden * element_bytes_);
    }

    // silu(gate x) * up x for some outputs.
    void up(const Segment& segment, int64_t first, int step, const char* next) const {
        const void* x[kMaxRows];
        void* results[kMaxRows];
        for (int r = 0; r < segment.count; ++r) {
            x[r] = x_[tokens_[segment.first + r]];
            results[r] = row(segment.first + r);
        }
        const int outputs = static_cast<int>(std::min<int64_t>(step, job_.intermediate - first));
        const char *gates = gate(segment, first), *ups = gate(segment, job_.intermediate + first);
        Sums& mine = own_sums();
        multiply(kernels_, {gates, job_.hidden, outputs, mine.copy, ups}, x, segment.count, mine.first);
        multiply(kernels_, {ups, job_.hidden, outputs, mine.copy, next}, x, segment.count, mine.second);
        kernels_.activate(mine.first, mine.second, first, outputs, results, segment.count);
    }

    // Some outputs of all experts' last product, from segment `begin` on; then, in the order of the experts, times the
    // tokens' shares, into the sum.
    template <class Iterator>
    void down(Iterator begin, Iterator end, int64_t first, int step, int64_t next_first) const {
        const int outputs = static_cast<int>(std::min<int64_t>(step, job_.hidden - first));
        Sums& mine = own_sums();
        const auto weights_of = [&](const Segment& segment, int64_t output) {
            return at(job_.experts[segment.expert], (2 * job_.hidden + output) * job_.intermediate * element_bytes_);
        };
        for (Iterator segment = begin; segment != end; ++segment) {
            const void* x[kMaxRows];
            for (int r = 0; r < segment->count; ++r) x[r] = row(segment->first + r);
            const Iterator after = std::next(segment);
            const char* next = after == end ? weights_of(*begin, next_first) : weights_of(*after, first);
            const Job job{weights_of(*segment, first), job_.intermediate, outputs, mine.copy, next};
            multiply(kernels_, job, x, segment->count, mine.second + (segment->first - first_row_) * kMaxOutputs);
        }
        for (int64_t r = 0; r < num_rows_; ++r)
            kernels_.add_share(mine.second + r * kMaxOutputs, shares_[first_row_ + r], outputs,
                               job_.out + tokens_[first_row_ + r] * job_.hidden + first);
    }

    const HrmExperts& job_;
    const Rows& x_;
    const Kernels& kernels_;
    const int32_t num_threads_;
    const int64_t element_bytes_, row_bytes_;
    char* const rows_;
    int64_t first_row_ = 0, num_rows_ = 0;  // of the segments
    std::vector<int64_t> starts_, tokens_;
    std::vector<float> shares_;
    std::vector<Segment> segments_;
};
