// take(step, args, kwargs): a training step in one call, from its arguments on, if it is known to be for them.

namespace {

// Its parts belong to the tuple that it was made of.
struct Step {
    explicit Step(PyObject* tuple)
        : watched(held<Watched>(part(tuple, 0))),
          arguments{part(tuple, 1), part(tuple, 2)},
          inputs(held<const Inputs>(part(tuple, 3))),
          single(part(tuple, 4)),
          note_state(part(tuple, 5)),
          token(part(tuple, 6)) {}

    Watched* watched;
    Arguments arguments;
    const Inputs* inputs;
    Single single;
    PyObject* note_state;  // gives the random state before the step, if that may be asked for afterwards; or None
    PyObject* token;       // a list of one object, which is empty while some thread takes a step
};

// The one object of a list, taken out of it for a while: the program lets go of the lock of Python, and another thread
// must not take a step of the same parameters meanwhile.
class Token {
  public:
    explicit Token(PyObject* list) : list_(list) {
        if (PyList_GET_SIZE(list) == 0) return;
        object_.take(Py_NewRef(PyList_GET_ITEM(list, 0)));
        if (PyList_SetSlice(list, 0, 1, nullptr) < 0) object_.take(nullptr);
    }
    ~Token() {
        if (object_) PyList_Append(list_, object_.get());
    }
    explicit operator bool() const { return static_cast<bool>(object_); }

  private:
    PyObject* list_;
    Ref object_;
};

// Whether the loss is a number, and the step valid where that is checked.
bool is_taken(PyObject* results) {
    const double loss = PyFloat_AS_DOUBLE(part(results, 0));
    return loss == loss && (length(results) == 1 || part(results, 1) == Py_True);
}

// The exception that is being raised, taken.
PyObject* taken_exception() {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace) PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
}

// None if the step is not known to be for these arguments, or another thread takes one; its loss; or, of a step that has
// halted or raised, its results or exception, its tensors, and the random state before it.
PyObject* take(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "take(step, args, kwargs)");
        return nullptr;
    }
    const Step step(args[0]);
    if (!step.watched || !step.inputs) return nullptr;
    // Before the conditions, of which one is that no thread captures: a capture begins by waiting for the token.
    const Token token(step.token);
    if (!token) Py_RETURN_NONE;
    Asked asked(args[1], args[2], step.arguments);
    const int all = all_hold(*step.watched, asked);
    if (all < 0) return nullptr;
    if (!all || !asked.tensors) Py_RETURN_NONE;
    Ref before(step.note_state == Py_None ? Py_NewRef(Py_None) : PyObject_CallNoArgs(step.note_state));
    if (!before) return nullptr;
    Ref results(run_once(*step.inputs, step.single, asked.tensors.get()));
    if (results && is_taken(results.get())) return Py_NewRef(part(results.get(), 0));
    if (!results) results.take(taken_exception());
    return PyTuple_Pack(3, results.get(), asked.tensors.get(), before.get());
}

template <typename T>
PyCFunction method(T function) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)); }

PyMethodDef methods[] = {
    {"watch", watch, METH_O, nullptr},
    {"inputs_of", method(inputs_of), METH_FASTCALL, nullptr},
    {"prepare", prepare, METH_VARARGS, nullptr},
    {"bind", bind, METH_VARARGS, nullptr},
    {"call", method(call), METH_FASTCALL, nullptr},
    {"call_until", method(call_until), METH_FASTCALL, nullptr},
    {"once", method(once), METH_FASTCALL, nullptr},
    {"take", method(take), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "sgc_native", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_sgc_native() { return PyModule_Create(&module); }
