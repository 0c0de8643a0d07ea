// watch(groups): groups of conditions, taken apart. holds(watched, groups, call): whether they hold for a call. What
// the tuples mean is said in watch.py, whose all_hold gives the same answers.
//
// A step of a large program leaves little of Python's objects in the caches, and each look at one waits for memory. So
// what is asked lies in a row, and an entry of a dictionary is looked up only if the dictionary has changed since.

namespace {

enum Kind { ENTRY, ENTRY_OF, ITEM, CELL, ATTRIBUTE, RESULT, LEAF, OF_CALL, FIXED };
enum Test { IS, ABSENT, EQUALS, LIKE, HOLDS, ALIKE, SAME };

// Names of attributes.
PyObject* const LEAVES = PyUnicode_InternFromString("leaves");
PyObject* const TENSORS = PyUnicode_InternFromString("tensors");
PyObject* const DTYPE = PyUnicode_InternFromString("dtype");
PyObject* const SHAPE = PyUnicode_InternFromString("shape");
PyObject* const IS_NESTED = PyUnicode_InternFromString("is_nested");

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

// How a value is read. The objects belong to the groups, the entry to the dictionary as long as its version stays.
struct Read {
    explicit Read(PyObject* read) : kind(static_cast<Kind>(integer(read, 0))), of(part(read, 1)), key(part(read, 2)) {}

    Kind kind;
    bool is_plain = false;  // the entry is a tensor that is not nested
    PyObject* of;
    PyObject* key;
    bool is_of_tensor = kind == ATTRIBUTE && is_tensor(of);
    PyObject* entry = nullptr;
    uint64_t version = 0;
};

struct Condition {
    explicit Condition(PyObject* condition) : test(static_cast<Test>(integer(condition, 0))) {
        if (test == ALIKE) {
            for (Py_ssize_t i = 0; i < length(part(condition, 1)); ++i) reads.emplace_back(part(part(condition, 1), i));
            gives = part(condition, 3);
        } else if (test != SAME) {
            reads.emplace_back(part(condition, 1));
        }
        expected = part(condition, test == SAME ? 1 : 2);
        by_version = test == HOLDS && length(part(expected, 2)) == 0;
    }

    Test test;
    PyObject* expected;
    PyObject* gives = nullptr;
    uint64_t version = 0;    // of a dictionary that holds what is expected
    bool by_version = false;  // there are no arrays among it, whose elements may change
    std::vector<Read> reads;
};

struct Group {
    std::vector<Condition> conditions;
    PyObject* miss;
};

using Watched = std::vector<Group>;

// The call that is asked about, and what was read last of whom entries are asked again and again: Pyro's store.
struct Asked {
    explicit Asked(PyObject* asked) : call(asked) {}

    PyObject* call;
    Ref leaves;
    Unseen unseen;
    PyObject* holder_read = nullptr;
    Ref holder;

    PyObject* leaf(Py_ssize_t position) {
        if (!leaves) leaves.take(PyObject_GetAttr(call, LEAVES));
        if (!leaves || position >= PyList_GET_SIZE(leaves.get())) return nullptr;
        return Py_NewRef(PyList_GET_ITEM(leaves.get(), position));
    }

    PyObject* holder_of(PyObject* read) {
        if (holder_read != read) {
            holder.take(value_of(Read(read)));
            holder_read = holder ? read : nullptr;
        }
        return holder && PyDict_Check(holder.get()) ? holder.get() : nullptr;
    }

    // The entry of a dictionary, a borrowed reference; null with an exception, or without one where there is none.
    PyObject* entry_of(Read& read) {
        PyObject* dictionary = read.kind == ENTRY ? read.of : holder_of(read.of);
        if (!dictionary) return nullptr;
        const uint64_t version = version_of(dictionary);
        if (!version || version != read.version) {
            read.is_plain = false;
            read.entry = PyDict_GetItemWithError(dictionary, read.key);
            read.version = PyErr_Occurred() ? 0 : version;
        }
        return read.entry;
    }

    // What is read, a new reference; null likewise.
    PyObject* value_of(Read&& read) { return value_of(read); }
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
                if (read.is_of_tensor) unseen.begin();
                return PyObject_GetAttr(read.of, read.key);
            case RESULT:
                unseen.end();
                return PyObject_Vectorcall(read.of, parts(read.key), length(read.key), nullptr);
            case LEAF: return leaf(PyLong_AsSsize_t(read.key));
            case OF_CALL: return PyObject_GetAttr(call, read.key);
            default: return Py_NewRef(read.of);
        }
    }
};

// Whether an array has the type, dtype, shape and bytes that were noted.
bool is_same_array(PyObject* value, PyObject* noted) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(value)) != part(noted, 1)) return false;
    Ref dtype(PyObject_GetAttr(value, DTYPE)), shape(PyObject_GetAttr(value, SHAPE));
    if (!dtype || dtype.get() != part(noted, 2) || !shape) return false;
    if (PyObject_RichCompareBool(shape.get(), part(noted, 3), Py_EQ) != 1) return false;
    Py_buffer view;
    if (PyObject_GetBuffer(value, &view, PyBUF_STRIDED_RO) < 0) return false;
    PyObject* bytes = part(noted, 4);
    const bool same = PyBuffer_IsContiguous(&view, 'C') && view.len == PyBytes_GET_SIZE(bytes) &&
                      std::memcmp(view.buf, PyBytes_AS_STRING(bytes), view.len) == 0;
    PyBuffer_Release(&view);
    return same;
}

// Whether a container holds the very objects that were noted: (type, objects, arrays among them, what decides if not).
bool holds_the_same(PyObject* value, PyObject* noted) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(value)) != part(noted, 0)) return false;
    PyObject *objects = part(noted, 1), *arrays = part(noted, 2);
    if (objects == Py_None) return length(arrays) == 1 && is_same_array(value, part(arrays, 0));
    const Py_ssize_t count = length(objects);
    if (PyDict_Check(value)) {
        if (2 * PyDict_GET_SIZE(value) != count) return false;
        PyObject *key, *entry;
        for (Py_ssize_t place = 0, i = 0; PyDict_Next(value, &place, &key, &entry); ++i)
            if (key != part(objects, i) || entry != part(objects, count / 2 + i)) return false;
    } else {
        if (!(PyList_Check(value) || PyTuple_Check(value)) || PySequence_Fast_GET_SIZE(value) != count) return false;
        for (Py_ssize_t i = 0; i < count; ++i)
            if (PySequence_Fast_GET_ITEM(value, i) != part(objects, i)) return false;
    }
    for (Py_ssize_t i = 0; i < length(arrays); ++i) {
        PyObject* array = part(arrays, i);
        if (!is_same_array(part(objects, integer(array, 0)), array)) return false;
    }
    return true;
}

// Whether the tensors that are read are like those that were there; if so, the call is given its inputs: of these
// tensors one each, or where a position is negative of its own leaves.
bool are_alike(Condition& condition, Asked& asked) {
    const Py_ssize_t count = condition.reads.size();
    Ref found(PyTuple_New(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
        Read& read = condition.reads[i];
        PyObject* tensor = asked.value_of(read);
        if (!tensor) return false;
        PyTuple_SET_ITEM(found.get(), i, tensor);
        if (read.is_plain) continue;
        // A nested tensor has no sizes; torch would end the process when asked for them.
        Ref nested(PyObject_GetAttr(tensor, IS_NESTED));
        if (nested.get() != Py_False) return false;
        read.is_plain = read.version || read.kind == FIXED;
    }
    if (count) {
        Ref alike(PyObject_Vectorcall(condition.expected, parts(found.get()), count, nullptr));
        if (alike.get() != Py_True) return false;
    }
    if (condition.gives == Py_None) return true;
    Ref inputs(PyList_New(length(condition.gives)));
    for (Py_ssize_t i = 0; i < length(condition.gives); ++i) {
        const long position = integer(condition.gives, i);
        PyObject* tensor = position < 0 ? asked.leaf(-1 - position) : Py_NewRef(part(found.get(), position));
        if (!tensor) return false;
        PyList_SET_ITEM(inputs.get(), i, tensor);
    }
    return PyObject_SetAttr(asked.call, TENSORS, inputs.get()) == 0;
}

// Whether the call's inputs are these objects, where one is named.
bool are_the_same(PyObject* expected, Asked& asked) {
    Ref tensors(PyObject_GetAttr(asked.call, TENSORS));
    if (!tensors || PyList_GET_SIZE(tensors.get()) != length(expected)) return false;
    for (Py_ssize_t i = 0; i < length(expected); ++i)
        if (part(expected, i) != Py_None && PyList_GET_ITEM(tensors.get(), i) != part(expected, i)) return false;
    return true;
}

bool decides(PyObject* function, PyObject* value) {
    Ref decided(PyObject_CallOneArg(function, value));
    return decided && PyObject_IsTrue(decided.get()) == 1;
}

// A dictionary that has held what is expected does so as long as its version stays.
bool is_unchanged(const Condition& condition, PyObject* value) {
    return condition.version && PyDict_Check(value) && version_of(value) == condition.version;
}

bool holds_still(Condition& condition, PyObject* value) {
    if (is_unchanged(condition, value)) return true;
    if (!holds_the_same(value, condition.expected)) return false;
    condition.version = condition.by_version && PyDict_Check(value) ? version_of(value) : 0;
    return true;
}

bool is_true(Condition& condition, Asked& asked) {
    if (condition.test == ALIKE) return are_alike(condition, asked);
    if (condition.test == SAME) return are_the_same(condition.expected, asked);
    Read& read = condition.reads[0];
    if (read.kind == ENTRY || read.kind == ENTRY_OF) {
        if (condition.test == IS) return asked.entry_of(read) == condition.expected;
        if (condition.version) {
            PyObject* entry = asked.entry_of(read);
            if (PyErr_Occurred()) return false;
            if (entry && is_unchanged(condition, entry)) return true;
        }
    }
    Ref value(asked.value_of(read));
    PyObject* expected = condition.expected;
    if (condition.test == ABSENT) return !value && !PyErr_Occurred();
    if (!value) return false;
    switch (condition.test) {
        case IS: return value.get() == expected;
        case EQUALS: return PyObject_RichCompareBool(value.get(), expected, Py_EQ) == 1;
        case LIKE: return value.get() == part(expected, 0) || decides(part(expected, 1), value.get());
        default:
            if (holds_still(condition, value.get())) return true;
            return !PyErr_Occurred() && part(expected, 3) != Py_None && decides(part(expected, 3), value.get());
    }
}

PyObject* watch(PyObject*, PyObject* groups) {
    auto watched = new Watched;
    for (Py_ssize_t i = 0; i < length(groups); ++i) {
        PyObject* conditions = part(part(groups, i), 0);
        Group group{{}, part(part(groups, i), 1)};
        for (Py_ssize_t j = 0; j < length(conditions); ++j) group.conditions.emplace_back(part(conditions, j));
        watched->push_back(std::move(group));
    }
    return capsule_of(watched);
}

PyObject* holds(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "holds(watched, groups, call)");
        return nullptr;
    }
    auto watched = held<Watched>(args[0]);
    if (!watched) return nullptr;
    for (const Group& group : *watched)
        for (const Condition& condition : group.conditions)
            for (const Read& read : condition.reads) {
                __builtin_prefetch(read.of);
                if (condition.version) __builtin_prefetch(read.entry);  // it may be gone: that is not looked at here
            }
    Asked asked(args[2]);
    for (Group& group : *watched) {
        bool all = true;
        for (size_t i = 0; all && i < group.conditions.size(); ++i) all = is_true(group.conditions[i], asked);
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError) && !PyErr_ExceptionMatches(PyExc_LookupError) &&
                !PyErr_ExceptionMatches(PyExc_ValueError)) return nullptr;
            PyErr_Clear();
            all = false;
        }
        if (all) continue;
        if (group.miss == Py_None) Py_RETURN_FALSE;
        Ref missed(PyObject_CallOneArg(group.miss, args[2]));
        if (!missed) return nullptr;
        if (missed.get() != Py_None) Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

}  // namespace
