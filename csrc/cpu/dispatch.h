// The instruction sets that the vectorised sources were compiled for.
#pragma once

namespace pad {

// The one in use: the best that this processor has, unless set.
const char* instruction_set();

// False where the name is unknown, was not compiled, or is more than this processor has.
bool set_instruction_set(const char* name);

}  // namespace pad
