// holds(groups, call): whether groups of conditions hold for a call. What the tuples mean is said in watch.py, whose
// all_hold gives the same answers.

namespace {

enum Read { ENTRY, ENTRY_OF, ITEM, CELL, ATTRIBUTE, RESULT, LEAF, OF_CALL, FIXED };
enum Condition { IS, ABSENT, EQUALS, LIKE, HOLDS, ALIKE, SAME };

// Names of attributes.
PyObject* const LEAVES = PyUnicode_InternFromString("leaves");
PyObject* const TENSORS = PyUnicode_InternFromString("tensors");
PyObject* const DTYPE = PyUnicode_InternFromString("dtype");
PyObject* const SHAPE = PyUnicode_InternFromString("shape");
PyObject* const IS_NESTED = PyUnicode_InternFromString("is_nested");

// An owned reference.
class Ref {
  public:
    explicit Ref(PyObject* object = nullptr) : object_(object) {}
    Ref(const Ref&) = delete;
    Ref& operator=(const Ref&) = delete;
    ~Ref() { Py_XDECREF(object_); }
    void take(PyObject* object) { Py_XSETREF(object_, object); }
    PyObject* get() const { return object_; }
    explicit operator bool() const { return object_ != nullptr; }

  private:
    PyObject* object_;
};

Py_ssize_t length(PyObject* tuple) { return PyTuple_GET_SIZE(tuple); }
PyObject** parts(PyObject* tuple) { return reinterpret_cast<PyTupleObject*>(tuple)->ob_item; }
PyObject* part(PyObject* tuple, Py_ssize_t position) { return parts(tuple)[position]; }
long integer(PyObject* tuple, Py_ssize_t position) { return PyLong_AsLong(part(tuple, position)); }

// The call that is asked about, and what was read last of whom entries are asked again and again: Pyro's store.
struct Asked {
    explicit Asked(PyObject* asked) : call(asked) {}

    PyObject* call;
    Ref leaves;
    PyObject* holder_read = nullptr;
    Ref holder;

    PyObject* leaf(Py_ssize_t position) {
        if (!leaves) leaves.take(PyObject_GetAttr(call, LEAVES));
        if (!leaves || position >= PyList_GET_SIZE(leaves.get())) return nullptr;
        return Py_NewRef(PyList_GET_ITEM(leaves.get(), position));
    }
};

// The value of a read, a new reference; null with an exception, or without one where a name is not there.
PyObject* value_of(PyObject* read, Asked& asked) {
    PyObject *of = part(read, 1), *key = part(read, 2);
    switch (integer(read, 0)) {
        case ENTRY: return Py_XNewRef(PyDict_GetItemWithError(of, key));
        case ENTRY_OF:
            if (asked.holder_read != of) {
                asked.holder.take(value_of(of, asked));
                asked.holder_read = asked.holder ? of : nullptr;
            }
            if (!asked.holder || !PyDict_Check(asked.holder.get())) return nullptr;
            return Py_XNewRef(PyDict_GetItemWithError(asked.holder.get(), key));
        case ITEM: return PyObject_GetItem(of, key);
        case CELL: {
            PyObject* value = PyCell_Get(of);
            if (!value) PyErr_SetNone(PyExc_ValueError);
            return value;
        }
        case ATTRIBUTE: return PyObject_GetAttr(of, key);
        case RESULT: return PyObject_Vectorcall(of, parts(key), length(key), nullptr);
        case LEAF: return asked.leaf(PyLong_AsSsize_t(key));
        case OF_CALL: return PyObject_GetAttr(asked.call, key);
        default: return Py_NewRef(of);
    }
}

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
bool are_alike(PyObject* condition, Asked& asked) {
    PyObject *reads = part(condition, 1), *check = part(condition, 2), *gives = part(condition, 3);
    Ref found(PyTuple_New(length(reads)));
    for (Py_ssize_t i = 0; i < length(reads); ++i) {
        PyObject* tensor = value_of(part(reads, i), asked);
        if (!tensor) return false;
        PyTuple_SET_ITEM(found.get(), i, tensor);
        // A nested tensor has no sizes; torch would end the process when asked for them.
        Ref nested(PyObject_GetAttr(tensor, IS_NESTED));
        if (nested.get() != Py_False) return false;
    }
    if (length(reads)) {
        Ref alike(PyObject_Vectorcall(check, parts(found.get()), length(reads), nullptr));
        if (alike.get() != Py_True) return false;
    }
    if (gives == Py_None) return true;
    Ref inputs(PyList_New(length(gives)));
    for (Py_ssize_t i = 0; i < length(gives); ++i) {
        const long position = integer(gives, i);
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

bool is_true(PyObject* condition, Asked& asked) {
    const long kind = integer(condition, 0);
    if (kind == ALIKE) return are_alike(condition, asked);
    if (kind == SAME) return are_the_same(part(condition, 1), asked);
    Ref value(value_of(part(condition, 1), asked));
    PyObject* expected = part(condition, 2);
    if (kind == ABSENT) return !value && !PyErr_Occurred();
    if (!value) return false;
    switch (kind) {
        case IS: return value.get() == expected;
        case EQUALS: return PyObject_RichCompareBool(value.get(), expected, Py_EQ) == 1;
        case LIKE: return value.get() == part(expected, 0) || decides(part(expected, 1), value.get());
        default:
            if (holds_the_same(value.get(), expected)) return true;
            return !PyErr_Occurred() && part(expected, 3) != Py_None && decides(part(expected, 3), value.get());
    }
}

PyObject* holds(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 2 || !PyTuple_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "holds(groups, call)");
        return nullptr;
    }
    Asked asked(args[1]);
    for (Py_ssize_t i = 0; i < length(args[0]); ++i) {
        PyObject *conditions = part(part(args[0], i), 0), *miss = part(part(args[0], i), 1);
        bool all = true;
        for (Py_ssize_t j = 0; all && j < length(conditions); ++j) all = is_true(part(conditions, j), asked);
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError) && !PyErr_ExceptionMatches(PyExc_LookupError) &&
                !PyErr_ExceptionMatches(PyExc_ValueError)) return nullptr;
            PyErr_Clear();
            all = false;
        }
        if (all) continue;
        if (miss == Py_None) Py_RETURN_FALSE;
        Ref missed(PyObject_CallOneArg(miss, args[1]));
        if (!missed) return nullptr;
        if (missed.get() != Py_None) Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

}  // namespace
