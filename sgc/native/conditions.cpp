// watch(groups): groups of conditions, taken apart. inputs_of(watched, call): the inputs of a call for which
// they hold, or None. What the tuples mean is said in conditions.py, whose inputs_of gives the same answers.
//
// A step of a large program leaves little of Python's objects in the caches, and each look at one waits for memory. So
// what dictionaries alone decide is asked by their versions once it has held, and other entries are looked up only if
// their dictionary has changed since.

namespace {

enum Test { IS, ABSENT, EQUALS, LIKE, HOLDS, ALIKE, SAME, DISJOINT };

// An input, and how many bytes of memory it takes up; less than none where that differs from call to call.
struct Sized {
    int64_t position;
    int64_t size;
};

// Which inputs are to share no memory: those that are written, with any; and the borders of what is taken besides, the
// begin of a stretch, its end, and so on.
struct Disjoint {
    Disjoint(PyObject* inputs, PyObject* taken, PyObject* measure) : measure(measure) {
        for (Py_ssize_t i = 0; i < 4; i += 2)
            for (Py_ssize_t j = 0; j < length(part(inputs, i)); ++j)
                (i ? others : written).push_back({integer(part(inputs, i), j), integer(part(inputs, i + 1), j)});
        for (Py_ssize_t i = 0; i < length(taken); ++i) borders.push_back(address(taken, i));
    }

    static uint64_t address(PyObject* tuple, Py_ssize_t i) { return PyLong_AsUnsignedLongLong(part(tuple, i)); }

    std::vector<Sized> written, others;
    std::vector<uint64_t> borders;
    PyObject* measure;  // gives how many bytes an input takes up
};

struct Condition {
    explicit Condition(PyObject* condition) : test(static_cast<Test>(integer(condition, 0))) {
        if (test == ALIKE) {
            for (Py_ssize_t i = 0; i < length(part(condition, 1)); ++i) reads.emplace_back(part(part(condition, 1), i));
            gives = part(condition, 3);
        } else if (test == DISJOINT) {
            disjoint = std::make_unique<Disjoint>(part(condition, 1), part(condition, 2), part(condition, 3));
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
    std::unique_ptr<Disjoint> disjoint;
};

struct Group {
    std::vector<Condition> conditions;
    PyObject* check;
    std::vector<size_t> open;  // the conditions that are not settled
};

// A dictionary, and the version that it had.
struct Noted {
    PyObject* dictionary;
    uint64_t version;
};

struct Watched {
    explicit Watched(PyObject* tuple) : made_of(Py_NewRef(tuple)) {}

    Ref made_of;
    bool is_settled = false;
    std::vector<Noted> settled;        // as long as these versions stay, all but the open conditions hold
    std::vector<PyObject*> restless;  // dictionaries that have changed: the globals of a loop, say
    std::vector<Group> groups;
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

// Whether the tensors that are read are like those that were there; if so, the call's inputs are found: of these
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
    asked.tensors.take(Py_NewRef(inputs.get()));
    return true;
}

// Whether the call's inputs are these objects, where one is named.
bool are_the_same(PyObject* expected, Asked& asked) {
    PyObject* tensors = asked.tensors.get();
    if (!tensors || PyList_GET_SIZE(tensors) != length(expected)) return false;
    for (Py_ssize_t i = 0; i < length(expected); ++i)
        if (part(expected, i) != Py_None && PyList_GET_ITEM(tensors, i) != part(expected, i)) return false;
    return true;
}

// Whether the call's inputs do not share memory that is written.
bool are_disjoint(const Disjoint& disjoint, Asked& asked) {
    PyObject* tensors = asked.tensors.get();
    if (!tensors) return false;
    std::vector<std::pair<uint64_t, uint64_t>> taken;
    const auto is_free = [&](const Sized& input, bool written) {
        if (!input.size || input.position >= PyList_GET_SIZE(tensors)) return !input.size;
        PyObject* tensor = PyList_GET_ITEM(tensors, input.position);
        int64_t size = input.size;
        if (size < 0) {
            Ref measured(PyObject_CallOneArg(disjoint.measure, tensor));
            size = measured ? PyLong_AsLongLong(measured.get()) : 0;
            if (!size) return !PyErr_Occurred();
        }
        Ref number(asked.address_of(tensor));
        const uint64_t start = number ? PyLong_AsUnsignedLongLong(number.get()) : 0;
        if (PyErr_Occurred()) return false;
        if (!start) return true;
        const uint64_t end = start + static_cast<uint64_t>(size);
        const auto next = std::upper_bound(disjoint.borders.begin(), disjoint.borders.end(), start);
        if ((next - disjoint.borders.begin()) % 2 || (next != disjoint.borders.end() && *next < end)) return false;
        for (const auto& other : taken)
            if (start < other.second && other.first < end) return false;
        if (written) taken.emplace_back(start, end);
        return true;
    };
    for (const Sized& input : disjoint.written)
        if (!is_free(input, true)) return false;
    for (const Sized& input : disjoint.others)
        if (!is_free(input, false)) return false;
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
    if (condition.test == DISJOINT) return are_disjoint(*condition.disjoint, asked);
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
    auto watched = new Watched(groups);
    for (Py_ssize_t i = 0; i < length(groups); ++i) {
        PyObject* conditions = part(part(groups, i), 0);
        Group group{{}, part(part(groups, i), 1), {}};
        for (Py_ssize_t j = 0; j < length(conditions); ++j) group.conditions.emplace_back(part(conditions, j));
        watched->groups.push_back(std::move(group));
    }
    return capsule_of(watched);
}

// Whether what a group stands for is so, though its conditions are not all true; -1 with an exception.
int is_so_yet(const Group& group, Asked& asked) {
    if (group.check == Py_None) return 0;
    PyObject* call = asked.call();
    if (!call) return -1;
    Ref answer(PyObject_CallOneArg(group.check, call));
    if (!answer) return -1;
    if (answer.get() == Py_None) return 1;
    if (!PyList_CheckExact(answer.get())) return 0;
    asked.tensors.take(Py_NewRef(answer.get()));
    return 1;
}

// Notes a dictionary's version; false if it is a restless one.
bool note(Watched& watched, PyObject* dictionary, uint64_t version) {
    for (PyObject* restless : watched.restless)
        if (restless == dictionary) return false;
    for (const Noted& noted : watched.settled)
        if (noted.dictionary == dictionary) return true;
    watched.settled.push_back({dictionary, version});
    return true;
}

// Whether a condition, which holds, does so as long as dictionaries have the versions that are noted here. One that is
// held by another comes after it: it is there as long as the other is as it was.
bool settle(Watched& watched, const Condition& condition) {
    if (condition.test == ALIKE || condition.test == SAME || condition.test == DISJOINT || condition.test == EQUALS)
        return false;
    const Read& read = condition.reads[0];
    if (read.kind == FIXED) return condition.version && note(watched, read.of, condition.version);
    if (read.kind != ENTRY || !read.version || !note(watched, read.of, read.version)) return false;
    if (condition.test == IS || condition.test == ABSENT) return true;
    if (condition.test == LIKE) return read.entry == part(condition.expected, 0);
    // Another tuple that will do may hold what changes: nothing else asks about that.
    if (condition.by_version && PyTuple_CheckExact(read.entry)) return holds_the_same(read.entry, condition.expected);
    return condition.version && note(watched, read.entry, condition.version);
}

void settle(Watched& watched) {
    watched.settled.clear();
    for (Group& group : watched.groups) {
        group.open.clear();
        for (size_t i = 0; i < group.conditions.size(); ++i)
            if (!settle(watched, group.conditions[i])) group.open.push_back(i);
    }
    watched.is_settled = true;
}

// Whether no dictionary has changed since. The first one that has is restless from now on.
bool is_still_settled(Watched& watched) {
    if (!watched.is_settled) return false;
    for (const Noted& noted : watched.settled) __builtin_prefetch(noted.dictionary);  // it may be gone
    for (const Noted& noted : watched.settled)
        if (version_of(noted.dictionary) != noted.version) {
            watched.restless.push_back(noted.dictionary);
            return watched.is_settled = false;
        }
    return true;
}

bool holds_each(Group& group, Asked& asked, bool settled) {
    bool all = true;
    const size_t count = settled ? group.open.size() : group.conditions.size();
    for (size_t i = 0; all && i < count; ++i) all = is_true(group.conditions[settled ? group.open[i] : i], asked);
    return all;
}

// Whether all groups hold; -1 with an exception.
int all_hold(Watched& watched, Asked& asked) {
    const bool settled = is_still_settled(watched);
    bool each = true;
    for (Group& group : watched.groups) {
        bool all = holds_each(group, asked, settled);
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError) && !PyErr_ExceptionMatches(PyExc_LookupError) &&
                !PyErr_ExceptionMatches(PyExc_ValueError)) return -1;
            PyErr_Clear();
            all = false;
        }
        if (all) continue;
        each = false;
        const int so = is_so_yet(group, asked);
        if (so != 1) return so;
    }
    if (each && !settled) settle(watched);
    return 1;
}

PyObject* inputs_of(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "inputs_of(watched, call)");
        return nullptr;
    }
    auto watched = held<Watched>(args[0]);
    if (!watched) return nullptr;
    Asked asked(args[1]);
    const int all = all_hold(*watched, asked);
    if (all < 0) return nullptr;
    if (!all) Py_RETURN_NONE;
    return asked.tensors ? Py_NewRef(asked.tensors.get()) : PyList_New(0);
}

}  // namespace
