// How a value is read that a condition is about: see conditions.py, which numbers the kinds.

namespace {

enum Kind { ENTRY, ENTRY_OF, ITEM, CELL, ATTRIBUTE, RESULT, LEAF, SPEC, FIXED, APPLIED };

// Names of attributes.
PyObject* const LEAVES = PyUnicode_InternFromString("leaves");
PyObject* const CALL_SPEC = PyUnicode_InternFromString("spec");
PyObject* const DTYPE = PyUnicode_InternFromString("dtype");
PyObject* const SHAPE = PyUnicode_InternFromString("shape");
PyObject* const IS_NESTED = PyUnicode_InternFromString("is_nested");
PyObject* const DATA_PTR = PyUnicode_InternFromString("data_ptr");

PyObject* of_torch(const char* name) {
    Ref module(PyImport_ImportModule("torch._C"));
    return module ? PyObject_GetAttrString(module.get(), name) : nullptr;
}

PyObject* const TENSOR = of_torch("TensorBase");
PyObject* const COUNT_MODES = of_torch("_len_torch_function_stack");
PyObject* const WITHOUT_MODES = of_torch("DisableTorchFunction");

bool is_tensor(PyObject* object) {
    return TENSOR && PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(TENSOR));
}

// While it lasts, no mode of torch's (a default device is one) sees that an attribute of a tensor is read, which takes
// a microsecond each time.
class Unseen {
  public:
    ~Unseen() { end(); }
    void begin() {
        if (context_ || !are_there_modes()) return;
        context_.take(PyObject_CallNoArgs(WITHOUT_MODES));
        Ref entered(context_ ? PyObject_CallMethod(context_.get(), "__enter__", nullptr) : nullptr);
        if (entered) return;
        PyErr_Clear();
        context_.take(nullptr);
    }
    void end() {
        if (!context_) return;
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        Ref left(PyObject_CallMethod(context_.get(), "__exit__", "OOO", Py_None, Py_None, Py_None));
        PyErr_Restore(type, value, traceback);
        context_.take(nullptr);
    }

  private:
    bool are_there_modes() {
        if (modes_ < 0) {
            Ref count(PyObject_CallNoArgs(COUNT_MODES));
            modes_ = count ? PyLong_AsLong(count.get()) : 0;
        }
        return modes_ > 0;
    }

    Ref context_;
    long modes_ = -1;
};

// A number that no other dictionary has, nor this one once it has changed; 0 where Python keeps none.
uint64_t version_of(PyObject* dictionary) {
#if PY_VERSION_HEX < 0x030D0000
    return reinterpret_cast<PyDictObject*>(dictionary)->ma_version_tag;
#else
    return 0;
#endif
}

// What C++ calls to read an attribute of an object whose type is written in C and computes it; null for others.
PyGetSetDef* getter_of(PyObject* object, PyObject* name) {
    if (Py_TYPE(object)->tp_getattro != PyObject_GenericGetAttr) return nullptr;
    Ref found(PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(object)), name));
    if (!found) PyErr_Clear();
    if (!found || !Py_IS_TYPE(found.get(), &PyGetSetDescr_Type)) return nullptr;
    return reinterpret_cast<PyGetSetDescrObject*>(found.get())->d_getset;
}

// How a value is read. The objects belong to the groups, the entry to the dictionary as long as its version stays.
struct Read {
    explicit Read(PyObject* read) : kind(static_cast<Kind>(integer(read, 0))), of(part(read, 1)), key(part(read, 2)) {
        if (kind == ENTRY_OF || kind == APPLIED) holder = std::make_unique<Read>(of);
    }

    Kind kind;
    bool is_plain = false;  // the entry is a tensor that is not nested
    PyObject* of;
    PyObject* key;
    bool is_of_tensor = kind == ATTRIBUTE && is_tensor(of);
    PyGetSetDef* getter = kind == ATTRIBUTE ? getter_of(of, key) : nullptr;
    PyObject* entry = nullptr;
    uint64_t version = 0;
    std::unique_ptr<Read> holder;  // gives the dictionary of ENTRY_OF, and what the function of APPLIED is given
};

// How the arguments of a call are taken apart where they have parts, and the types of those that have none.
struct Arguments {
    PyObject* make_call;  // Call of guards.py
    PyObject* plain;      // a frozenset

    bool are_plain(PyObject* args, PyObject* kwargs) const {
        for (Py_ssize_t i = 0; i < length(args); ++i)
            if (!is_plain(part(args, i))) return false;
        PyObject *name, *value;
        for (Py_ssize_t place = 0; PyDict_Next(kwargs, &place, &name, &value);)
            if (!is_plain(value)) return false;
        return true;
    }
    bool is_plain(PyObject* value) const {
        return PySet_Contains(plain, reinterpret_cast<PyObject*>(Py_TYPE(value))) == 1;
    }
};

// The call that is asked about: a Call, or arguments, of which a Call is made only where one is needed. And what was
// read last of whom entries are asked again and again: Pyro's store.
class Asked {
  public:
    explicit Asked(PyObject* call) : call_(Py_NewRef(call)) {}
    Asked(PyObject* args, PyObject* kwargs, const Arguments& arguments)
        : args_(args), kwargs_(kwargs), arguments_(&arguments) {
        if (!arguments.are_plain(args, kwargs)) return;
        leaves_.take(Py_NewRef(args));
        if (!PyDict_GET_SIZE(kwargs)) return;
        Ref values(PyDict_Values(kwargs)), named(values ? PyList_AsTuple(values.get()) : nullptr);
        leaves_.take(named ? PySequence_Concat(args, named.get()) : nullptr);
    }

    // The Call, a borrowed reference.
    PyObject* call() {
        if (!call_) call_.take(PyObject_CallFunctionObjArgs(arguments_->make_call, args_, kwargs_, nullptr));
        return call_.get();
    }

    PyObject* leaf(Py_ssize_t position) {
        if (!leaves_) leaves_.take(call() ? PyObject_GetAttr(call_.get(), LEAVES) : nullptr);
        if (!leaves_ || position >= PySequence_Fast_GET_SIZE(leaves_.get())) return nullptr;
        return Py_NewRef(PySequence_Fast_GET_ITEM(leaves_.get(), position));
    }

    // How the arguments are made of leaves: of plain ones the number of those without a name, and the names.
    PyObject* spec() {
        if (call_ || !leaves_) return call() ? PyObject_GetAttr(call_.get(), CALL_SPEC) : nullptr;
        PyObject* made = PyTuple_New(1 + PyDict_GET_SIZE(kwargs_));
        PyTuple_SET_ITEM(made, 0, PyLong_FromSsize_t(length(args_)));
        PyObject *name, *value;
        for (Py_ssize_t place = 0, i = 1; PyDict_Next(kwargs_, &place, &name, &value); ++i)
            PyTuple_SET_ITEM(made, i, Py_NewRef(name));
        return made;
    }

    Ref tensors;  // the inputs of the call, a list, once they are found

    PyObject* holder_of(Read& read) {
        if (holder_read_ != read.of) {
            holder_.take(value_of(*read.holder));
            holder_read_ = holder_ ? read.of : nullptr;
        }
        return holder_ && PyDict_Check(holder_.get()) ? holder_.get() : nullptr;
    }

    // The entry of a dictionary, a borrowed reference; null with an exception, or without one where there is none.
    PyObject* entry_of(Read& read) {
        PyObject* dictionary = read.kind == ENTRY ? read.of : holder_of(read);
        if (!dictionary) return nullptr;
        const uint64_t version = version_of(dictionary);
        if (!version || version != read.version) {
            read.is_plain = false;
            read.entry = PyDict_GetItemWithError(dictionary, read.key);
            read.version = PyErr_Occurred() ? 0 : version;
        }
        return read.entry;
    }

    // Where the memory of a tensor begins, a new reference; null with an exception.
    PyObject* address_of(PyObject* tensor) {
        unseen_.begin();
        return PyObject_CallMethodNoArgs(tensor, DATA_PTR);
    }

    // What is read, a new reference; null likewise.
    PyObject* value_of(Read& read) {
        switch (read.kind) {
            case ENTRY:
            case ENTRY_OF: return Py_XNewRef(entry_of(read));
            case ITEM: return PyObject_GetItem(read.of, read.key);
            case CELL: {
                PyObject* value = PyCell_Get(read.of);
                if (!value) PyErr_SetNone(PyExc_ValueError);
                return value;
            }
            case ATTRIBUTE:
                if (read.is_of_tensor) unseen_.begin();
                if (read.getter) return read.getter->get(read.of, read.getter->closure);
                return PyObject_GetAttr(read.of, read.key);
            case RESULT:
                unseen_.end();
                return PyObject_Vectorcall(read.of, parts(read.key), length(read.key), nullptr);
            case LEAF: return leaf(PyLong_AsSsize_t(read.key));
            case SPEC: return spec();
            case APPLIED: {
                Ref value(value_of(*read.holder));
                unseen_.end();
                return value ? PyObject_CallOneArg(read.key, value.get()) : nullptr;
            }
            default: return Py_NewRef(read.of);
        }
    }

  private:
    Ref call_;
    PyObject* args_ = nullptr;
    PyObject* kwargs_ = nullptr;
    const Arguments* arguments_ = nullptr;
    Ref leaves_;
    Unseen unseen_;
    PyObject* holder_read_ = nullptr;
    Ref holder_;
};

}  // namespace
