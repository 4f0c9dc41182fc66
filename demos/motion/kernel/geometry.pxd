cdef class Robot:
    cdef readonly str name
    cdef readonly int joints, frames, spheres
    cdef readonly tuple joint_names, links, pairs
    cdef readonly object limits, local, body, frame_of, poses, parents, turning, reaches, cover, cover_frame, clumps
    cdef double[::1] lower, upper, reach, fixed
    cdef int[::1] parent, joint
    cdef double[::1] x, y, z, r
    cdef int[::1] first, bodies
    cdef double[:, ::1] bound, wrap, clump
    cdef int[::1] clump_first, frame_clumps
    cdef int[::1] pair_frames, pair_bodies, pair_first
    cdef int frame_pairs


cdef class Obstacles:
    cdef readonly object spheres, boxes, cylinders, capsules
    cdef double[:, ::1] ball, box, cylinder, capsule
    cdef int balls, cuboids, drums, pills


cdef class Checker:
    cdef readonly Robot robot
    cdef readonly Obstacles obstacles
    cdef readonly bint blocked
    cdef bint covered
    cdef readonly object around
    cdef double[:, ::1] covering
    cdef double[::1] pose, x, y, z, centre, between
    cdef double[:, ::1] outer
    cdef int[::1] filled, near
    cdef int solids

    cdef void place(self, const double* q) noexcept nogil
    cdef void fill(self, int frame) noexcept nogil
    cdef bint overlaps(self, int solid, double x, double y, double z, double r) noexcept nogil
    cdef bint hits_obstacle(self, int frame, double margin) noexcept nogil
    cdef bint cover_hits(self, int frame, double margin, int close) noexcept nogil
    cdef bint cover_overlaps(self, int frame, int sphere, int solid, double margin) noexcept nogil
    cdef bint hits_itself(self, double margin) noexcept nogil
    cdef bint hit(self, const double* q, double margin, double room) noexcept nogil
    cdef int points(self, const double* a, const double* b) noexcept nogil
    cdef int edge_hit(self, const double* a, const double* b, double margin, int points) noexcept nogil
    cdef int closely_hit(self, const double* a, const double* b, double margin, int points) noexcept nogil
