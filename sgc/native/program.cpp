// Calls a program that Inductor has compiled, any number of times for one call from Python, and kernels after it.

namespace {

using Handle = void*;
using Function = void (*)(void* const* operands, int64_t begin, int64_t end, bool finish);

struct Kernel {
    Function function;
    int64_t size;
    std::vector<int64_t> operands;
};

struct Plan {
    void (*program)(Handle*, Handle*);
    int32_t (*copy)(Handle, Handle*);
    int32_t (*release)(Handle);
    int32_t (*data)(Handle, void**);
    int32_t (*contiguous)(Handle, bool*);
    bool (*with_gradients)();
    void (*set_gradients)(bool);
    std::vector<int64_t> takes;  // which inputs the program takes
    std::string gives;           // the type of each result that the caller wants; the kernels want those after them
    size_t results;
    std::vector<Kernel> kernels;
    std::vector<int64_t> operands;  // the inputs that are operands of kernels
    int threads;
    std::shared_ptr<const Plan> particle;  // is run before the program, on the same inputs, if there is one
    int64_t particles = 0;                 // so many times
    int64_t first = 0, aborted = 0;        // the inputs that tell it and the program of that: bool, on the CPU
};

// The inputs of a plan; those that each call brings are null.
struct Inputs {
    std::shared_ptr<const Plan> plan;
    std::vector<Handle> handles;
    std::vector<int64_t> brought;

    ~Inputs() {
        for (Handle handle : handles)
            if (handle) plan->release(handle);
    }
};

// What one call needs besides: the tuple (handles_of, announce, written).
struct Single {
    explicit Single(PyObject* tuple)
        : handles_of(part(tuple, 0)), announce(part(tuple, 1)), written(part(tuple, 2)) {}

    PyObject* handles_of;  // gives handles of tensors
    PyObject* announce;    // tells autograd
    PyObject* written;     // of these tensors
};

size_t size(char type) { return type == 'd' ? 8 : type == 'f' ? 4 : type == 'h' ? 2 : 1; }

PyObject* number(char type, const void* place) {
    switch (type) {
        case 'd': return PyFloat_FromDouble(*static_cast<const double*>(place));
        case 'f': return PyFloat_FromDouble(*static_cast<const float*>(place));
        default: return PyBool_FromLong(*static_cast<const bool*>(place));
    }
}

template <typename T>
void look_up(T& function, PyObject* address) { function = reinterpret_cast<T>(PyLong_AsVoidPtr(address)); }

std::vector<int64_t> numbers(PyObject* tuple) {
    std::vector<int64_t> found;
    for (Py_ssize_t i = 0; i < length(tuple); ++i) found.push_back(PyLong_AsLongLong(part(tuple, i)));
    return found;
}

// prepare(addresses, takes, gives, results, kernels, threads, loop): what does not change from call to call. The loop is
// None, or (plan of a particle, how many, the input that says which is the first, the input that says what is aborted).
PyObject* prepare(PyObject*, PyObject* args) {
    PyObject *addresses, *takes, *kernels, *loop;
    const char* gives;
    Py_ssize_t results;
    int threads;
    if (!PyArg_ParseTuple(args, "O!O!snO!iO", &PyTuple_Type, &addresses, &PyTuple_Type, &takes, &gives, &results,
                          &PyTuple_Type, &kernels, &threads, &loop)) return nullptr;
    auto plan = std::make_shared<Plan>();
    look_up(plan->program, part(addresses, 0));
    look_up(plan->copy, part(addresses, 1));
    look_up(plan->release, part(addresses, 2));
    look_up(plan->data, part(addresses, 3));
    look_up(plan->contiguous, part(addresses, 4));
    look_up(plan->with_gradients, part(addresses, 5));
    look_up(plan->set_gradients, part(addresses, 6));
    plan->takes = numbers(takes);
    plan->gives = gives;
    plan->results = static_cast<size_t>(results);
    plan->threads = threads;
    for (Py_ssize_t i = 0; i < length(kernels); ++i) {
        PyObject* kernel = part(kernels, i);
        Kernel made{nullptr, PyLong_AsLongLong(part(kernel, 1)), numbers(part(kernel, 2))};
        look_up(made.function, part(kernel, 0));
        for (int64_t operand : made.operands)
            if (operand >= 0) plan->operands.push_back(operand);
        plan->kernels.push_back(std::move(made));
    }
    if (loop != Py_None) {
        const auto particle = held<std::shared_ptr<const Plan>>(part(loop, 0));
        if (!particle) return nullptr;
        plan->particle = *particle;
        plan->particles = PyLong_AsLongLong(part(loop, 1));
        plan->first = PyLong_AsLongLong(part(loop, 2));
        plan->aborted = PyLong_AsLongLong(part(loop, 3));
    }
    return capsule_of(new std::shared_ptr<const Plan>(plan));
}

// bind(plan, handles): inputs from a list of capsules, whose handles are taken over; None for those that calls bring.
PyObject* bind(PyObject*, PyObject* args) {
    PyObject *plan, *handles;
    if (!PyArg_ParseTuple(args, "OO!", &plan, &PyList_Type, &handles)) return nullptr;
    const auto known = held<std::shared_ptr<const Plan>>(plan);
    if (!known) return nullptr;
    auto inputs = new Inputs{*known};
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(handles); ++i) {
        PyObject* handle = PyList_GET_ITEM(handles, i);
        if (handle == Py_None) inputs->brought.push_back(i);
        inputs->handles.push_back(handle == Py_None ? nullptr : PyCapsule_GetPointer(handle, nullptr));
    }
    return capsule_of(inputs);
}

constexpr int64_t SHARE = 1 << 15;  // elements that are worth a thread

void run_kernel(const Kernel& kernel, void* const* operands, int threads) {
    if (kernel.size <= SHARE) return kernel.function(operands, 0, kernel.size, true);
#pragma omp parallel for num_threads(threads)
    for (int64_t begin = 0; begin < kernel.size; begin += SHARE)
        kernel.function(operands, begin, begin + SHARE < kernel.size ? begin + SHARE : kernel.size, false);
    kernel.function(operands, 0, 0, true);
}

// Ends a run of many calls: behind one whose first result is NaN, or before one that raises, unless it is the first.
struct Halt {
    PyObject* note_state;  // gives the random state
    int64_t done = 0;      // how many calls have been made
    Ref before{nullptr};   // the random state before the last one of them, or before the one that has raised
};

bool is_nan(char type, const void* place) {
    const double value = type == 'd' ? *static_cast<const double*>(place) : *static_cast<const float*>(place);
    return value != value;
}

// A program with its inputs, and room for what it is given and gives, each time anew.
class Program {
  public:
    Program(const Plan& plan, const std::vector<Handle>& handles)
        : found(plan.results), plan_(plan), handles_(handles), given_(plan.takes.size()), results_(plan.results),
          bytes_(handles.size()) {
        for (int64_t i : plan.operands) plan.data(handles[i], &bytes_[i]);
    }

    // Runs it; if that succeeds, its results are to be released. Not so if an operator that is called through Python has
    // raised: then it has returned, with nothing.
    bool run() {
        for (size_t i = 0; i < given_.size(); ++i) plan_.copy(handles_[plan_.takes[i]], &given_[i]);
        plan_.program(given_.data(), results_.data());
        return !PyErr_Occurred();
    }

    // Looks up where the elements of the results are.
    void find(bool check) {
        for (size_t i = 0; i < results_.size(); ++i) {
            bool contiguous = true;
            if (check) plan_.contiguous(results_[i], &contiguous);
            if (!contiguous) throw std::runtime_error("a result does not lie in the order of its elements");
            plan_.data(results_[i], &found[i]);
        }
    }

    void run_kernels() {
        for (const Kernel& kernel : plan_.kernels) {
            operands_.clear();
            for (int64_t place : kernel.operands) operands_.push_back(place < 0 ? found[-1 - place] : bytes_[place]);
            run_kernel(kernel, operands_.data(), plan_.threads);
        }
    }

    void release() {
        for (Handle result : results_) plan_.release(result);
    }

    std::vector<void*> found;

  private:
    const Plan& plan_;
    const std::vector<Handle>& handles_;
    std::vector<Handle> given_, results_;
    std::vector<void*> bytes_, operands_;
};

// Runs the particles of a step. If one behind the first raises, the step is run to put back what they have written.
class Particles {
  public:
    Particles(const Plan& plan, const std::vector<Handle>& handles)
        : program_(*plan.particle, handles), count_(plan.particles) {
        plan.data(handles[plan.first], reinterpret_cast<void**>(&first_));
        plan.data(handles[plan.aborted], reinterpret_cast<void**>(&aborted_));
    }

    bool run() {
        for (int64_t particle = 0; particle < count_; ++particle) {
            *first_ = particle == 0;
            *aborted_ = particle != 0;
            if (!program_.run()) return false;
            program_.release();
        }
        *aborted_ = false;
        return true;
    }

    void put_back(Program& step) {
        if (!*aborted_) return;
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        if (step.run()) {
            step.find(false);
            step.run_kernels();
            step.release();
        }
        PyErr_Restore(type, value, trace);
    }

  private:
    Program program_;
    int64_t count_;
    bool* first_ = nullptr;
    bool* aborted_ = nullptr;
};

// Calls the program so many times, each time after the particles and followed by the kernels. What the call brings is a
// list of capsules, whose handles are taken over. Each result that is wanted has a place: that of call t goes to
// place + t * size. Without places the results of the last call are returned as numbers. With the lock of Python held, of
// which the program itself lets go.
PyObject* run(const Inputs& inputs, PyObject* brought, int64_t times, const std::vector<char*>& places,
              Halt* halt = nullptr) {
    const Plan& plan = *inputs.plan;
    std::vector<Handle> handles(inputs.handles);
    for (size_t i = 0; i < inputs.brought.size(); ++i)
        handles[inputs.brought[i]] = PyCapsule_GetPointer(PyList_GET_ITEM(brought, i), nullptr);
    Program step(plan, handles);
    std::unique_ptr<Particles> particles(plan.particle ? new Particles(plan, handles) : nullptr);
    PyObject* returned = places.empty() ? PyTuple_New(plan.gives.size()) : Py_NewRef(Py_None);
    const bool with_gradients = plan.with_gradients();
    plan.set_gradients(false);
    try {
        for (int64_t time = 0; time < times; ++time) {
            if (halt) {
                halt->before.take(PyObject_CallNoArgs(halt->note_state));
                if (PyErr_Occurred()) break;
            }
            if (particles && !particles->run()) break;
            if (!step.run()) break;
            step.find(time == 0);
            for (size_t i = 0; i < places.size(); ++i)
                std::memcpy(places[i] + time * size(plan.gives[i]), step.found[i], size(plan.gives[i]));
            for (Py_ssize_t i = 0; places.empty() && time == times - 1 && i < PyTuple_GET_SIZE(returned); ++i)
                PyTuple_SET_ITEM(returned, i, number(plan.gives[i], step.found[i]));
            step.run_kernels();
            const bool halts = halt && is_nan(plan.gives[0], step.found[0]);
            step.release();
            if (halt) ++halt->done;
            if (halts) break;
        }
    } catch (const std::exception& error) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    if (particles && PyErr_Occurred()) {
        try {
            particles->put_back(step);
        } catch (const std::exception& error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
    }
    plan.set_gradients(with_gradients);
    // The call that has raised will do so again when it is the first one.
    if (halt && halt->done && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear();
    for (int64_t i : inputs.brought) plan.release(handles[i]);
    if (PyErr_Occurred()) Py_CLEAR(returned);
    return returned;
}

// call(inputs, brought, times, *addresses): see run.
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
    auto inputs = held<const Inputs>(args[0]);
    if (!inputs) return nullptr;
    std::vector<char*> places;
    for (Py_ssize_t i = 3; i < count; ++i) places.push_back(static_cast<char*>(PyLong_AsVoidPtr(args[i])));
    return run(*inputs, args[1], PyLong_AsLongLong(args[2]), places);
}

// call_until(inputs, brought, times, note_state, *addresses): see run and Halt; how many calls were made, and a state.
PyObject* call_until(PyObject*, PyObject* const* args, Py_ssize_t count) {
    auto inputs = held<const Inputs>(args[0]);
    if (!inputs) return nullptr;
    std::vector<char*> places;
    for (Py_ssize_t i = 4; i < count; ++i) places.push_back(static_cast<char*>(PyLong_AsVoidPtr(args[i])));
    Halt halt{args[3]};
    Ref none(run(*inputs, args[1], PyLong_AsLongLong(args[2]), places, &halt));
    if (!none) return nullptr;
    return Py_BuildValue("(LO)", static_cast<long long>(halt.done), halt.before.get());
}

// One call, with what it brings among these tensors; what it gives, as numbers. However it ends, the tensors that it
// writes are announced.
PyObject* run_once(const Inputs& inputs, const Single& single, PyObject* tensors) {
    Ref brought(PyList_New(inputs.brought.size()));
    for (size_t i = 0; i < inputs.brought.size(); ++i)
        PyList_SET_ITEM(brought.get(), i, Py_NewRef(PyList_GET_ITEM(tensors, inputs.brought[i])));
    Ref handles(PyObject_CallOneArg(single.handles_of, brought.get()));
    if (!handles) return nullptr;
    Ref returned(run(inputs, handles.get(), 1, {}));
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Ref announced(PyObject_CallOneArg(single.announce, single.written));
    if (type) PyErr_Restore(type, value, trace);
    return announced ? Py_XNewRef(returned.get()) : nullptr;
}

// once(inputs, single, tensors): see run_once.
PyObject* once(PyObject*, PyObject* const* args, Py_ssize_t count) {
    auto inputs = count == 3 ? held<const Inputs>(args[0]) : nullptr;
    if (!inputs) return nullptr;
    return run_once(*inputs, Single(args[1]), args[2]);
}

}  // namespace
