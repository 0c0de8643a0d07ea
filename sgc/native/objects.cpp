// Python's objects, as the other files see them.

namespace {

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

template <typename T>
T* held(PyObject* capsule) { return static_cast<T*>(PyCapsule_GetPointer(capsule, nullptr)); }

template <typename T>
void destroy(PyObject* capsule) { delete held<T>(capsule); }

template <typename T>
PyObject* capsule_of(T* made) {
    PyObject* capsule = PyErr_Occurred() ? nullptr : PyCapsule_New(made, nullptr, destroy<T>);
    if (!capsule) delete made;
    return capsule;
}

}  // namespace
