/* schedule.c: what changes while a model is trained ----- V2 §3.1.2, V3 §4.2
 *
 * One type for all of it: learning rate, batch size, γ and α of balancing, λ
 * of MTP. A schedule is a row of segments, each with the count of tokens that
 * it ends at, and gives a value for every count of tokens seen before a step.
 * Counting tokens, not steps, is the papers' way, and makes a schedule
 * independent of the batch size. Only warm-up counts updates.
 *
 * Computed in double, the cosine by base/maths.h: the same bits everywhere.
 * Not here: reading schedules (settings.c). */
#include "deepseek.h"

#include "base/maths.h"

#include <math.h>

Schedule schedule_constant(double value)
{
    return (Schedule){1, {{UINT64_MAX, SHAPE_CONSTANT, value, value}}};
}

/* part: how much of the segment is over, 0 to 1. */
static double between(const ScheduleSegment *s, double part)
{
    const double pi = 3.14159265358979324;
    if (s->shape == SHAPE_LINEAR)
        return s->from + (s->to - s->from) * part;
    return s->to + 0.5 * (s->from - s->to) * (1 + cos64(pi * part));
}

double schedule_value(const Schedule *s, uint64_t tokens)
{
    uint64_t begin = 0;
    for (size_t i = 0; i < s->n; i++) {
        const ScheduleSegment *segment = &s->segments[i];
        uint64_t end = segment->until;
        if (tokens < end && segment->shape == SHAPE_CONSTANT)
            return segment->from;
        if (tokens < end)
            return between(segment, (double)(tokens - begin)
                                        / (double)(end - begin));
        begin = end;
    }
    return s->segments[s->n - 1].to;
}

size_t schedule_sequences(const Schedule *s, uint64_t tokens)
{
    double whole = floor(schedule_value(s, tokens) + 0.5);
    return whole < 1 ? 1 : (size_t)whole;
}

double warm_up(double value, uint64_t update, uint64_t warmup)
{
    return update < warmup ? value * ((double)update / (double)warmup)
                           : value;
}
