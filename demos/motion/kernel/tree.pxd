cdef struct Tree:
    int count, joints, room
    double *blocks
    double *so_far
    double *away
    int *parent
    int *child
    int *sibling
    int *moved

cdef int grow(Tree *self) except -1 nogil
cdef void drop(Tree *self) noexcept nogil
cdef void read(const Tree *self, int node, double* out) noexcept nogil
cdef double apart(const Tree *self, int node, const double* q) noexcept nogil
cdef int add(Tree *self, const double* q, int parent, double length) except -1 nogil
cdef int nearest(Tree *self, const double* q) noexcept nogil
cdef void move(Tree *self, int node, int parent, double length) noexcept nogil
cdef int keep(Tree *self) noexcept nogil
