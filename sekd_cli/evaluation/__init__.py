"""The paper's tasks, measured: homographies, relative pose, structure from motion, speed."""
