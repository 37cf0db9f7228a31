//! Checkpoints that try to get more than their container has, and archives that try to get out.

mod archives;
mod filters;
mod privileges;
mod sample;
mod surroundings;
