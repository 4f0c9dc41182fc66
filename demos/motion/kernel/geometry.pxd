cdef class Robot:
    cdef readonly str name
    cdef readonly int joints, frames, spheres
    cdef readonly tuple joint_names, links, pairs
    cdef readonly object limits, local, body, frame_of, poses, parents, turning, reaches, cover, cover_frame
    cdef double[::1] lower, upper, reach, fixed
    cdef int[::1] parent, joint
    cdef double[::1] x, y, z, r
    cdef int[::1] first, bodies
    cdef double[:, ::1] bound, wrap, covering
    cdef int[::1] cover_first
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
    cdef double[::1] pose, x, y, z, centre, between
    cdef double[:, ::1] outer
    cdef int[::1] filled, covers, near
    cdef int solids

    cdef void place(self, const double* q) noexcept nogil
    cdef void fill(self, int frame) noexcept nogil
    cdef bint overlaps(self, int solid, double x, double y, double z, double r) noexcept nogil
    cdef bint hits_obstacle(self, int frame, double margin) noexcept nogil
    cdef bint hits_itself(self, double margin) noexcept nogil
    cdef bint hit(self, const double* q, double margin) noexcept nogil
    cdef int points(self, const double* a, const double* b) noexcept nogil
    cdef int edge_hit(self, const double* a, const double* b, double margin, int points) noexcept nogil
